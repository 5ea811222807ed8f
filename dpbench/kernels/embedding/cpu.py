"""Embeddings: one example touches at most T rows, so its gradient is gathered on those rows only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Factor, Leaf, Sums, Use, accumulation_dtype, weighted_factors


class EmbeddingLeaf(Leaf):
    """`nn.Embedding`: weight [V, D]; input ids [B, ...]."""

    modules = (nn.Embedding,)

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__(module)
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(module, option):
                raise DpbenchError(f"nn.Embedding with {option} has no per-example gradient here", f"build it without {option}")
        self.padding = module.padding_idx

    def _flat(self, use: Use) -> tuple[Tensor, Tensor]:
        """ids [B, T], g [B, T, D]; the padding id's gradient set to 0."""
        batch = len(use.g)
        ids, g = use.x.reshape(batch, -1), use.g.reshape(batch, -1, use.g.shape[-1])
        if self.padding is not None:
            g = g.masked_fill((ids == self.padding)[..., None], 0)
        return ids, g

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        ids, g = self._flat(Use(use.x[index : index + 1], use.g[index : index + 1]))
        into["weight"].index_add_(0, ids[0], g[0].to(into["weight"].dtype))

    def sq_norms(self, use: Use) -> Tensor:
        ids, g = self._flat(use)
        return torch.stack([_rows(ids_i, g_i)[1].square().sum() for ids_i, g_i in zip(ids, g, strict=True)])

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        ids, g = self._flat(use)
        for factor, ids_i, g_i in zip(factors, ids, g, strict=True):
            into["weight"].index_add_(0, ids_i, (g_i * factor.to(g.dtype)).to(into["weight"].dtype))

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        """One gather an example serves its norm and its scaled add."""
        ids, g = self._flat(use)
        norms = []
        for ids_i, g_i in zip(ids, g, strict=True):
            rows, values = _rows(ids_i, g_i)
            norm = torch.linalg.vector_norm(values)
            norms.append(norm)
            scale, finite = weighted_factors(norm.reshape(1), factor)
            if finite:
                into["weight"].index_add_(0, rows, values.mul_(scale).to(into["weight"].dtype))
        return torch.stack(norms)


def _rows(ids: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """ids [T], g [T, D] -> the U different rows [U] and their gradients [U, D], fp32 or wider."""
    rows, place = torch.unique(ids, return_inverse=True)
    values = torch.zeros(len(rows), g.shape[-1], dtype=accumulation_dtype(g), device=g.device)
    return rows, values.index_add_(0, place, g.to(values.dtype))

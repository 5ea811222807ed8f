"""Embeddings: repeated tokens add before the norm is taken, without forming one example's V x D gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Factor, Leaf, Sums, Use, accumulation_dtype, weighted_factors

_GRAM_TOKENS = 1024  # repeated tokens up to which their Gram matrix is cheaper than gathering rows


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
        return torch.stack([_squared(ids_i, g_i) for ids_i, g_i in zip(ids, g, strict=True)])

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        ids, g = self._flat(use)
        wide = into["weight"].dtype
        scaled = g.to(wide) * factors.to(wide)[:, None, None]
        into["weight"].index_add_(0, ids.reshape(-1), scaled.flatten(0, 1))

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        norms = self.sq_norms(use).sqrt()
        factors, finite = weighted_factors(norms, factor)
        into.zeroed()
        if finite.any():
            kept = use if finite.all() else use.keep(finite)
            self.add_weighted(kept, factors[finite], into)
        return norms


def _squared(ids: Tensor, g: Tensor) -> Tensor:
    """ids [T], g [T, D] -> squared norm of the gathered gradient, in fp32 or wider."""
    g = g.to(accumulation_dtype(g))
    rows, place, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    if len(rows) == len(ids):  # position ids, for one
        return g.square().sum()
    repeated = counts[place] > 1
    place, twice = place[repeated], g[repeated]
    if len(place) <= _GRAM_TOKENS:
        together = ((twice @ twice.T) * (place[:, None] == place)).sum()
    else:
        together = torch.zeros(len(rows), g.shape[-1], dtype=g.dtype, device=g.device).index_add_(0, place, twice).square().sum()
    return (g[~repeated].square().sum() + together).clamp_(min=0)

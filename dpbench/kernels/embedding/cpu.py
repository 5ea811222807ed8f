"""Embeddings: repeated tokens add before the norm is taken, without forming one example's V x D gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Factor, Leaf, Sums, Use, accumulation_dtype

_CHUNK = 1 << 20  # elements of g gathered at once: far fewer than the activations


class EmbeddingLeaf(Leaf):
    """`nn.Embedding`: weight [V, D]; input ids [B, ...]."""

    modules = (nn.Embedding,)

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__(module)
        for option in ("max_norm", "scale_grad_by_freq", "sparse"):
            if getattr(module, option):
                raise DpbenchError(f"nn.Embedding with {option} has no per-example gradient here", f"build it without {option}")
        self.padding, self.rows = module.padding_idx, module.num_embeddings

    def _flat(self, use: Use) -> tuple[Tensor, Tensor]:
        """Return ids [B, T] and g [B, T, D] with the padding id's gradient set to 0."""
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
        step = max(1, _CHUNK // max(1, g[:1].numel()))
        pieces = zip(ids.split(step), g.split(step), strict=True)
        return torch.cat([_squared(ids_i, g_i, self.rows) for ids_i, g_i in pieces])

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        ids, g = self._flat(use)
        wide = into["weight"].dtype
        scaled = g.to(wide) * factors.to(wide)[:, None, None]
        into["weight"].index_add_(0, ids.reshape(-1), scaled.flatten(0, 1))

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        return self.two_stage(use, factor, into)


def _squared(ids: Tensor, g: Tensor, rows: int) -> Tensor:
    """Return the [b] squared norms of the gradients of ids [b, T] below `rows` with g [b, T, D], in fp32 or wider."""
    batch = len(ids)
    if ids.numel() == 0:
        return torch.zeros(batch, dtype=accumulation_dtype(g), device=g.device)
    keys, order = (ids + torch.arange(batch, device=ids.device)[:, None] * rows).flatten().sort()
    first = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    starts = first.nonzero().squeeze(1)
    gathered = embedding_bag(order, g.flatten(0, 1).to(accumulation_dtype(g)), starts, mode="sum")
    squares = torch.linalg.vector_norm(gathered, dim=1).square()
    return squares.new_zeros(batch).index_add_(0, keys[starts] // rows, squares)

"""Embeddings by Triton kernels: ids are sorted, so that equal ones are adjacent; nothing waits for the device."""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn

from dpbench.kernels import launch
from dpbench.kernels.embedding import onchip
from dpbench.kernels.embedding.cpu import EmbeddingLeaf
from dpbench.kernels.leaf import Factor, Sums, Use

_BLOCK_T, _BLOCK_F = 64, 32  # of the norm
_ROWS, _BLOCK_D = 16, 256  # of the sum


@torch.library.custom_op("dpbench::embedding_sq_norms", mutates_args=())
def embedding_sq_norms(ids: Tensor, g: Tensor, padding: int) -> Tensor:
    """Return the [B] squared norms, fp32, of ids [B, T] with g [B, T, D]. Rows of equal ids add first; id `padding` adds 0."""
    batch, tokens, width = g.shape
    if g.numel() == 0:
        return g.new_zeros(batch, dtype=torch.float32)
    in_order, order = ids.sort(1)
    side = triton.cdiv(tokens, _BLOCK_T)
    parts = g.new_empty((batch, side * (side + 1) // 2), dtype=torch.float32)
    with launch.on(g):
        onchip.embedding_norm_kernel[(parts.shape[1], batch)](
            in_order, order, g, parts, tokens, width, padding, *g.stride(), BLOCK_T=_BLOCK_T, BLOCK_F=_BLOCK_F,
            PRECISION=launch.precision(g.dtype), num_warps=4,
        )  # fmt: skip
    return parts.sum(1).clamp_(min=0)


@embedding_sq_norms.register_fake
def _(ids: Tensor, g: Tensor, padding: int) -> Tensor:
    return g.new_empty(g.shape[0], dtype=torch.float32)


@torch.library.custom_op("dpbench::embedding_add_weighted", mutates_args=("weight",))
def embedding_add_weighted(ids: Tensor, g: Tensor, factors: Tensor, weight: Tensor, padding: int) -> None:
    """Add sum_i factors[i] x gradient_i to weight [V, D]; a factor of 0 adds exactly 0."""
    tokens, width = g.shape[1:]
    if g.numel() == 0:
        return
    in_order, order = ids.flatten().sort(stable=True)
    with launch.on(g):
        onchip.embedding_add_kernel[(ids.numel(), triton.cdiv(width, _BLOCK_D))](
            in_order, order, g, factors.to(torch.float32), weight, ids.numel(), tokens, width, padding, *g.stride(),
            *weight.stride(), ROWS=_ROWS, BLOCK_D=_BLOCK_D, num_warps=4,
        )  # fmt: skip


@embedding_add_weighted.register_fake
def _(ids: Tensor, g: Tensor, factors: Tensor, weight: Tensor, padding: int) -> None:
    return None


class EmbeddingTritonLeaf(EmbeddingLeaf):
    """`nn.Embedding` by Triton: weight [V, D]; input ids [B, ...]."""

    modules = (nn.Embedding,)
    dtypes = launch.DTYPES

    def _tokens(self, use: Use) -> tuple[Tensor, Tensor]:
        launch.check_dtype(use.g, "nn.Embedding")
        g = launch.rows(use.g)
        return use.x.reshape(g.shape[:2]), g

    def _padding(self) -> int:
        return -1 if self.padding is None else self.padding

    def sq_norms(self, use: Use) -> Tensor:
        return embedding_sq_norms(*self._tokens(use), self._padding())

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        embedding_add_weighted(*self._tokens(use), factors, into.zeroed()["weight"], self._padding())

    def add_finite(self, use: Use, factors: Tensor, finite: Tensor, into: Sums) -> None:
        self.add_weighted(use, torch.where(finite, factors, 0.0), into)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        return self.two_stage(use, factor, into)

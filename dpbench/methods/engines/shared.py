"""Layers that share a tensor: their gradient is formed one example at a time, so that the norm includes cross terms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dpbench.kernels.leaf import Sums, Use, accumulation_dtype
from dpbench.methods.engines.layers import Layer


def sq_norms(uses: list[tuple[Layer, Use]]) -> Tensor:
    """Return the [B] squared norms of the sum over all uses of a cluster."""
    if len(uses) == 1:
        layer, use = uses[0]
        return layer.leaf.sq_norms(use)
    return torch.stack([squared_norm(gradients) for gradients in examples(uses)])


def examples(uses: list[tuple[Layer, Use]]) -> Iterator[dict[int, Tensor]]:
    """Yield one example's gradient after another as id(parameter) -> gradient, in buffers that are reused."""
    g = uses[0][1].g
    tensors = {id(p): p for layer, _ in uses for p in layer.parameters.values()}
    buffers = {key: torch.zeros(p.shape, dtype=accumulation_dtype(g), device=g.device) for key, p in tensors.items()}
    for index in range(len(g)):
        for buffer in buffers.values():
            buffer.zero_()
        for layer, use in uses:
            layer.leaf.add_example(use, index, _local(layer, buffers))
        yield buffers


def squared_norm(gradients: dict[int, Tensor]) -> Tensor:
    """Return the squared norm over all tensors of one example's gradient."""
    return torch.stack([value.square().sum() for value in gradients.values()]).sum()


def _local(layer: Layer, buffers: dict[int, Tensor]) -> Sums:
    return Sums({name: buffers[id(p)] for name, p in layer.parameters.items()})

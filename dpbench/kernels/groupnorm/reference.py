"""The oracle: every per-example gradient of scale and shift, in fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def per_example(x: Tensor, g: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the scale and shift gradients, [B, C] each, fp64, for x and g [B, C, ...]."""
    batch, channels = x.shape[:2]
    x, g = x.double(), g.double().reshape(batch, channels, -1)
    grouped = x.reshape(batch, groups, -1)
    normal = (grouped - grouped.mean(-1, keepdim=True)) / torch.sqrt(grouped.var(-1, unbiased=False, keepdim=True) + eps)
    return (g * normal.reshape(g.shape)).sum(2), g.sum(2)

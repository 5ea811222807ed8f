"""The oracle: every per-example gradient of the scale, in fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def per_example(x: Tensor, g: Tensor, eps: float) -> Tensor:
    """Return the scale gradients [B, D], fp64, for x and g [B, T, D]."""
    x, g = x.double(), g.double()
    return (g * x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)).sum(1)

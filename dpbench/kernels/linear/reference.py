"""The oracle: every per-example gradient, materialised in fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def per_example(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight gradients [B, O, I] and bias gradients [B, O], fp64, for x [B, T, I] and g [B, T, O]."""
    x, g = x.double(), g.double()
    return torch.einsum("bto,bti->boi", g, x), g.sum(1)


def clipped_sum(x: Tensor, g: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_i factors[i] x gradient_i for weight [O, I] and bias [O], fp64."""
    weight, bias = per_example(x, g)
    return torch.einsum("b,boi->oi", factors.double(), weight), torch.einsum("b,bo->o", factors.double(), bias)

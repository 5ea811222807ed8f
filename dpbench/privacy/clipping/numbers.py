"""Clipping factors at the limits of a dtype."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def representable(factors: Tensor) -> Tensor:
    """Return the factors, which are >= 0, with 0 in place of infinity and of numbers below the smallest normal one.

    A gradient so short that bound / norm overflows has no usable direction, and a denormal factor has so few digits that rounding
    may double it.
    """
    import torch

    smallest = torch.finfo(factors.dtype).smallest_normal
    return torch.nn.functional.threshold(factors.nan_to_num(nan=math.nan, posinf=0.0), smallest, 0.0)

"""Factors at the ends of what a dtype can say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def representable(factors: Tensor) -> Tensor:
    """Factors >= 0, and 0 for what is no normal number: infinity, and what is below the smallest.

    Of a gradient so short that bound / norm overflows there is no direction to speak of; a denormal factor has so few digits that
    rounding may double it.
    """
    import torch

    smallest = torch.finfo(factors.dtype).smallest_normal
    return torch.nn.functional.threshold(factors.nan_to_num(nan=math.nan, posinf=0.0), smallest, 0.0)

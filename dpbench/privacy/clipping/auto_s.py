"""AUTO-S: C / (norm + gamma). Bu et al., "Automatic Clipping", NeurIPS 2023, equation 4.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench.privacy.clipping.numbers import representable

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = {"kind": "function", "name": "auto_s", "version": 1, "summary": "normalise, with a stability constant gamma"}


def factor(norms: Tensor, bound: float, gamma: float) -> Tensor:
    """Return the factors [B] for norms [B]. With gamma > 0 a small gradient stays small.

    Guarantee: factor x norm <= bound for every finite norm (the factor is 0 where it would be no normal number).
    """
    return representable(bound / (norms + gamma))

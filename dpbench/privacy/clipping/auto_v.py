"""AUTO-V: C / norm. Bu et al., "Automatic Clipping", NeurIPS 2023, section 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench.privacy.clipping.numbers import representable

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = {"kind": "function", "name": "auto_v", "version": 1, "summary": "normalise every gradient to the bound"}


def factor(norms: Tensor, bound: float, gamma: float) -> Tensor:
    """Return the factors [B] for norms [B]; `gamma` has no effect. A zero gradient has no direction and gets factor 0.

    Guarantee: factor x norm <= bound for every finite norm (0 where bound / norm is no normal number).
    """
    return representable(bound / norms)

"""Abadi clipping: min(1, C / norm). Abadi et al., "Deep Learning with Differential Privacy", 2016."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench.privacy.clipping.numbers import representable

if TYPE_CHECKING:
    from torch import Tensor

PLUGIN = {
    "kind": "function",
    "name": "abadi",
    "version": 1,
    "summary": "scale down what is longer than the bound",
    "threshold": True,
}


def factor(norms: Tensor, bound: float, gamma: float) -> Tensor:
    """Return the factors [B] for norms [B]; `gamma` has no effect.

    Guarantee: factor x norm <= bound for every finite norm; a zero gradient has factor 1.
    """
    return representable((bound / norms).clamp(max=1.0))

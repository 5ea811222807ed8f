"""Per-layer scope: one group per leaf module, its weight and bias together."""

from __future__ import annotations

PLUGIN = {"kind": "scope", "name": "per_layer", "version": 1, "summary": "one norm per leaf module", "stages": True}


def groups(layers: list[str]) -> list[list[str]]:
    """Return the groups of layer names."""
    return [[layer] for layer in layers]

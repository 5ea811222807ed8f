"""Per-tensor scope: one group per trained tensor. A layer's weight and bias are clipped separately."""

from __future__ import annotations

PLUGIN = {
    "kind": "scope",
    "name": "per_tensor",
    "version": 1,
    "summary": "one norm per trained tensor",
    "unit": "tensor",
    "stages": True,
}


def groups(layers: list[str]) -> list[list[str]]:
    """Return the groups of tensor names; with `unit: "tensor"` the names passed as `layers` are those of tensors."""
    return [[tensor] for tensor in layers]

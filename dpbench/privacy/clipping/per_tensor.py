"""Per-tensor scope: one group per trained tensor; a layer's weight and bias are clipped apart."""

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
    """Tensor names -> groups of tensor names."""
    return [[tensor] for tensor in layers]

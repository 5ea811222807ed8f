"""Flat scope: the gradient is one group."""

from __future__ import annotations

PLUGIN = {
    "kind": "scope",
    "name": "flat",
    "version": 1,
    "summary": "one norm over all parameters",
    "stages": True,
    "spans_stages": True,  # so the stages of a pipeline exchange its norms
}


def groups(layers: list[str]) -> list[list[str]]:
    """Return the groups of layer names."""
    return [list(layers)]

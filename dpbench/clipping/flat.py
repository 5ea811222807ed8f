"""Flat scope: one group, the whole gradient."""

from __future__ import annotations

PLUGIN = {"kind": "scope", "name": "flat", "version": 1, "summary": "one norm over all parameters"}


def groups(layers: list[str]) -> list[list[str]]:
    """Layer names -> groups of layer names."""
    return [list(layers)]

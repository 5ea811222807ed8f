"""Per-block scope: one group per transformer block; what lies outside blocks is grouped layer by layer."""

from __future__ import annotations

import re

PLUGIN = {
    "kind": "scope",
    "name": "per_block",
    "version": 1,
    "summary": "one norm per block of a list of blocks",
    "stages": True,
}

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?=\.|$)")


def groups(layers: list[str]) -> list[list[str]]:
    """Layer names -> groups of layer names, each in the place of its first layer."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(block_of(layer), []).append(layer)
    return list(found.values())


def block_of(layer: str) -> str:
    """The name up to and including its first list index: `model.transformer.h.3.attn.c_attn` -> `model.transformer.h.3`.

    The layer's own name where there is no index, and for layers of several blocks that share a tensor (`h.0.a+h.1.a`).
    """
    found = [_BLOCK.match(part) for part in layer.split("+")]
    blocks = {match.group() if match else layer for match in found}
    return blocks.pop() if len(blocks) == 1 else layer

"""Per-block scope: one group per transformer block. A layer outside blocks is a group by itself."""

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
    """Return the groups of layer names, each at the position of its first layer."""
    layers_of_block: dict[str, list[str]] = {}
    for layer in layers:
        layers_of_block.setdefault(block_of(layer), []).append(layer)
    return list(layers_of_block.values())


def block_of(layer: str) -> str:
    """Return the name up to and including its first list index: `model.transformer.h.3` of `model.transformer.h.3.attn.c_attn`.

    It is the layer's name where there is no index, and for layers of several blocks that share a tensor (`h.0.a+h.1.a`).
    """
    matches = [_BLOCK.match(part) for part in layer.split("+")]
    blocks = {match.group() if match else layer for match in matches}
    return blocks.pop() if len(blocks) == 1 else layer

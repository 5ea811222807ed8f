"""Generated colour drawings of ten shapes: the stand-in for CIFAR-10."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded import shapes

VERSION = 1
SPLITS = shapes.SPLITS
SEED = 20_240_608


def generate(split: str) -> dict[str, list[Any]]:
    """Return `image` (32 x 32 x 3 raw bytes) and `label` (0 to 9: see `shapes.SHAPES`) of a split."""
    return shapes.draw(SEED, split, 32, 3)

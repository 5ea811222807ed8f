"""Generated colour drawings of ten shapes, larger than CIFAR-10's: the stand-in for ImageNette."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded import shapes

VERSION = 1
SPLITS = shapes.SPLITS
SEED = 20_240_611


def generate(split: str) -> dict[str, list[Any]]:
    """Return `image` (64 x 64 x 3 raw bytes) and `label` (0 to 9: see `shapes.SHAPES`) of a split."""
    return shapes.draw(SEED, split, 64, 3)

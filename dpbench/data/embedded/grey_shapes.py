"""Generated grey drawings of ten shapes: the stand-in for MNIST."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded import shapes

VERSION = 1
SPLITS = shapes.SPLITS
SEED = 20_240_606


def generate(split: str) -> dict[str, list[Any]]:
    """Return `image` (28 x 28 x 1 raw bytes) and `label` (0 to 9: see `shapes.SHAPES`) of a split."""
    return shapes.draw(SEED, split, 28, 1)

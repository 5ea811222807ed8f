"""Generated colour drawings with yes-or-no attributes of their shape: the stand-in for CelebA."""

from __future__ import annotations

from typing import Any

from dpbench import plugins
from dpbench.data.embedded import shapes

VERSION = 1
SPLITS = shapes.SPLITS
SEED = 20_240_613


def generate(split: str) -> dict[str, list[Any]]:
    """Return the columns of a split.

    Returns:
        `image` (64 x 64 x 3 raw bytes); `label` (0 for the first five of `shapes.SHAPES`, 1 for the others); and 0 or 1 for each
        of CelebA's attributes, `label_Bald` and so on: whether the shape is one of five that differ from attribute to attribute.
    """
    columns = shapes.draw(SEED, split, 64, 3)
    kinds = columns["label"]
    columns["label"] = [int(kind >= 5) for kind in kinds]
    names = [name for name in plugins.get("dataset", "celeba_multilabel").extra["columns"] if name.startswith("label_")]
    for number, name in enumerate(names):
        columns[name] = [int((kind + number) * (1 + number % 3) % len(shapes.SHAPES) < 5) for kind in kinds]
    return columns

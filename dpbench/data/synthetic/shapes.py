"""Drawings of ten shapes at random places, sizes and shades, under noise, for the stand-ins of image datasets.

They use only integers and numpy's `RandomState`, whose streams are frozen, so the bytes are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dpbench import plugins
from dpbench.data.synthetic import StandIn

SHAPES = ("disc", "ring", "square", "frame", "rows", "columns", "plus", "cross", "triangle", "checks")
NOISE = 64  # grey levels of uniform noise on every pixel, of 256
CONTRAST = 70  # least difference of shape and background, before the noise


def _mask(shape: int, size: int, x: int, y: int, r: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return [size, size], true at the pixels of a shape of half-width r (at least 6) around (x, y)."""
    v, h = np.mgrid[:size, :size]
    h, v = h - x, v - y
    across, down, far = abs(h), abs(v), h * h + v * v
    inside = (across <= r) & (down <= r)
    thin = r // 3
    return (
        far <= r * r,
        (far <= r * r) & (far >= (r - thin) ** 2),
        inside,
        inside & ((across > r - thin) | (down > r - thin)),
        inside & ((v + r) % 4 < 2),
        inside & ((h + r) % 4 < 2),
        inside & ((across < thin) | (down < thin)),
        inside & (abs(across - down) < thin),
        inside & (2 * across <= v + r),
        inside & (((v + r) // 3 + (h + r) // 3) % 2 == 0),
    )[shape]


def _drawings(stand_in: StandIn, split: str, size: int, channels: int) -> dict[str, list[Any]]:
    """Return `image` (size x size x channels raw bytes, row by row) and `label` (index into SHAPES) of a split."""
    random = np.random.RandomState(stand_in.seed + list(stand_in.splits).index(split))
    columns: dict[str, list[Any]] = {"image": [], "label": []}
    for _ in range(stand_in.splits[split]):
        shape, r = random.randint(len(SHAPES)), random.randint(6, size // 3 + 1)
        x, y = random.randint(r, size - r, size=2)
        back = random.randint(0, 256 - NOISE, size=channels)
        front = back.copy()
        while abs(front - back).max() < CONTRAST:
            front = random.randint(0, 256 - NOISE, size=channels)
        pixels = np.where(_mask(shape, size, x, y, r)[..., None], front, back)
        pixels = pixels + random.randint(0, NOISE, size=(size, size, channels))
        columns["image"].append(pixels.astype(np.uint8).tobytes())
        columns["label"].append(int(shape))
    return columns


def grey(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `image` (28 x 28 x 1) and `label`, 0 to 9: the stand-in for MNIST."""
    return _drawings(stand_in, split, 28, 1)


def colour(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `image` (32 x 32 x 3) and `label`, 0 to 9: the stand-in for CIFAR-10."""
    return _drawings(stand_in, split, 32, 3)


def photo(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `image` (64 x 64 x 3) and `label`, 0 to 9: the stand-in for ImageNette."""
    return _drawings(stand_in, split, 64, 3)


def faces(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return the columns of the stand-in for CelebA.

    Returns:
        `image` (64 x 64 x 3); `label` (0 for the first five of `SHAPES`, 1 for the others); and 0 or 1 for each of CelebA's
        attributes, `label_Bald` and so on: whether the shape is one of five that differ from attribute to attribute.
    """
    columns = _drawings(stand_in, split, 64, 3)
    kinds = columns["label"]
    columns["label"] = [int(kind >= 5) for kind in kinds]
    names = [name for name in plugins.get("dataset", "celeba_multilabel").extra["columns"] if name.startswith("label_")]
    for number, name in enumerate(names):
        columns[name] = [int((kind + number) * (1 + number % 3) % len(SHAPES) < 5) for kind in kinds]
    return columns

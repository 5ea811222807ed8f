"""Drawings of ten shapes at random places, sizes and shades, under noise, for the stand-ins of image datasets.

They use only integers and numpy's `RandomState`, whose streams are frozen, so the bytes are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPES = ("disc", "ring", "square", "frame", "rows", "columns", "plus", "cross", "triangle", "checks")
SPLITS = {"train": 4_000, "test": 1_000}
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


def draw(seed: int, split: str, size: int, channels: int) -> dict[str, list[Any]]:
    """Return `image` (size x size x channels raw bytes, row by row) and `label` (index into SHAPES) of a split."""
    random = np.random.RandomState(seed + list(SPLITS).index(split))
    columns: dict[str, list[Any]] = {"image": [], "label": []}
    for _ in range(SPLITS[split]):
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

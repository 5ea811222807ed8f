"""Stored images to pixels: raw bytes, or anything Pillow reads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpbench.errors import DpbenchError

_ENCODED = (b"\x89PNG", b"RIFF", b"\xff\xd8\xff")  # PNG, WebP, JPEG


def decode(values: Sequence[bytes], image: Mapping[str, Any], where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels [N, C, H, W] of images that are each encoded, or H x W x C raw bytes.

    Args:
        image: `channels`, `height`, `width`, as a dataset's plug-in states them; `fit`: encoded images of another size are cut to
            the middle of that shape and resized. where: opens what is said of a bad image.

    Raises:
        DpbenchError: an image cannot be read or has another size; names its row.
    """
    channels, height, width = image["channels"], image["height"], image["width"]
    out = np.empty((len(values), channels, height, width), dtype=np.uint8)
    for row, value in enumerate(values):
        if value.startswith(_ENCODED):
            size = (width, height) if image.get("fit") else None
            pixels = _opened(value, "L" if channels == 1 else "RGB", size, f"{where}: row {row}")
        elif len(value) == channels * height * width:
            pixels = np.frombuffer(value, dtype=np.uint8).reshape(height, width, channels)
        else:
            raise DpbenchError(
                f"{where}: row {row} holds {len(value)} bytes, neither a PNG, WebP or JPEG nor {height} x {width} x {channels}",
                "fetch the file again",
            )
        if pixels.shape[:2] != (height, width):
            found = " x ".join(map(str, pixels.shape[:2]))
            raise DpbenchError(f"{where}: row {row} is {found}, not {height} x {width}", "fetch the file again")
        out[row] = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return out


def _opened(value: bytes, mode: str, size: tuple[int, int] | None, where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(value)) as opened:
            found = opened.convert(mode)
            return np.asarray(found if size is None else ImageOps.fit(found, size, Image.Resampling.BILINEAR))
    except (OSError, UnidentifiedImageError) as error:
        raise DpbenchError(f"{where} is not a readable image ({error})", "fetch the file again") from error

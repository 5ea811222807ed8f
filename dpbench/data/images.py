"""Stored images to pixels: raw bytes, PNG, WebP or JPEG. An error about an image that cannot be read names its row."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpbench.data.remarks import remark, row_name
from dpbench.errors import DpbenchError

if TYPE_CHECKING:
    from PIL.Image import Image


Pixels = np.ndarray[Any, np.dtype[np.uint8]]

LARGEST = 64_000_000
"""Pixels of an encoded image, before it is cut and resized: far above any camera's that such data come from."""

_PNG, _JPEG = b"\x89PNG", b"\xff\xd8\xff"
_FORMATS = ("PNG", "WEBP", "JPEG", "MPO")  # an MPO is a JPEG with further views behind it, which telephones write
_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\0\0\0\x0cjP": "JPEG 2000", b"<svg": "SVG"}
_AGAIN = "fetch the file again"


def decode(
    values: Sequence[Any], image: Mapping[str, Any], where: str, rows: Sequence[int] | None = None, title: str = ""
) -> Pixels:
    """Return the pixels [N, C, H, W] of images, each of which is encoded or H x W x C raw bytes.

    Encoded images are turned as their EXIF orientation says, 16 bits of grey become 8 by scale, colour becomes grey by luminance,
    and an alpha channel is left out, as Pillow and the `datasets` library do.

    Args:
        image: `channels`, `height`, `width` of a dataset's plug-in; with `fit`, encoded images of another size are cut to the
            middle of that shape and resized.
        where: the beginning of every error about an image.
        rows: the numbers of the images in the file, from 0, where they are not its first ones.
        title: the beginning of remarks, if not `where`.

    Raises:
        DpbenchError: an image is missing, cannot be read, is animated, too large, or has another size; the error names its row.
    """
    channels, height, width = image["channels"], image["height"], image["width"]
    raw = channels * height * width
    out = np.empty((len(values), channels, height, width), dtype=np.uint8)
    mostly_raw = 2 * sum(value is not None and len(value) == raw and not _certainly_encoded(value) for value in values) > len(
        values
    )
    transparent = 0
    for number, value in enumerate(values):
        position = f"{where}: {row_name(number if rows is None else rows[number])}"
        if value is None:
            hint = "write the images themselves into the file, as `to_parquet` of the `datasets` library does"
            raise DpbenchError(f"{position} holds no bytes (only a path, or nothing)", hint)
        if len(value) == raw and not _encoded(value, image, mostly_raw):
            pixels = np.frombuffer(value, dtype=np.uint8).reshape(height, width, channels)
        elif value.startswith((_PNG, b"RIFF", _JPEG)):
            pixels, opaque = _opened(value, image, position)
            transparent += not opaque
        else:
            raise _unknown(value, image, position)
        out[number] = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    if transparent:
        remark(f"{title or where}: {transparent} of {len(values)} images are transparent in places; the colour below is used")
    return out


def _certainly_encoded(value: bytes) -> bool:
    """Return whether the bytes begin with a signature that is too long to be pixels by chance."""
    webp = value.startswith(b"RIFF") and value[8:12] == b"WEBP"
    jpeg = value.startswith(_JPEG) and value[6:11] in (b"JFIF\0", b"Exif\0")
    return webp or jpeg or value.startswith(b"\x89PNG\r\n\x1a\n")


def _encoded(value: bytes, image: Mapping[str, Any], mostly_raw: bool) -> bool:
    """Return whether bytes that have the length of raw pixels are an encoded image.

    The first three bytes of a JPEG may also be a pixel. Then the bytes count as pixels unless they can be decoded, or the other
    images are encoded: this image is then a truncated JPEG.
    """
    if _certainly_encoded(value):
        return True
    if not value.startswith(_JPEG):
        return False
    try:
        _opened(value, image, "")
    except DpbenchError:
        return not mostly_raw
    return True


def _unknown(value: bytes, image: Mapping[str, Any], where: str) -> DpbenchError:
    channels, height, width = image["channels"], image["height"], image["width"]
    shape, raw = f"{height} x {width} x {channels}", channels * height * width
    other_format = next((name for magic, name in _OTHERS.items() if value.startswith(magic)), None)
    bits_of_factor = {2: "of 16 bits", 4: "of 32 bits", 8: "of 64 bits"}
    hint = _AGAIN
    if other_format is not None:
        hint = f"it begins as a {other_format} does: store images as PNG, WebP or JPEG"
    elif raw and len(value) % raw == 0 and len(value) // raw in bits_of_factor:
        hint = f"if these are values {bits_of_factor[len(value) // raw]}, scale them to 0 to 255 and store bytes (uint8)"
    return DpbenchError(f"{where} holds {len(value)} bytes, neither a PNG, WebP or JPEG nor {shape}", hint)


def _opened(value: bytes, image: Mapping[str, Any], where: str) -> tuple[Pixels, bool]:
    """Return the pixels [H, W, C] or [H, W], and whether the image is opaque everywhere."""
    from PIL import Image, ImageOps

    expected_size = (image["width"], image["height"])
    fit = bool(image.get("fit"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow only warns of is judged here
            with Image.open(io.BytesIO(value), formats=_FORMATS) as opened:
                _check_head(opened, where)
                turned = _turned(opened)
                if turned.size == expected_size or fit:
                    opaque = "A" not in turned.mode or turned.getchannel("A").getextrema()[0] == 255
                    flat = _flat(turned, "L" if image["channels"] == 1 else "RGB")
                    return np.asarray(ImageOps.fit(flat, expected_size, Image.Resampling.BILINEAR) if fit else flat), opaque
                actual_size = turned.size
    except DpbenchError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = "it is cut or damaged" if "BytesIO" in str(error) else str(error) or type(error).__name__
        raise DpbenchError(f"{where} is not a readable image ({reason})", _AGAIN) from error
    what = f"{where} is {actual_size[1]} x {actual_size[0]}, not {expected_size[1]} x {expected_size[0]}"
    raise DpbenchError(what, f"store images of {expected_size[1]} x {expected_size[0]}, height first")


def _check_head(opened: Image, where: str) -> None:
    """Check size and number of frames before any pixel is decoded."""
    if opened.width * opened.height > LARGEST:
        what = f"{where} is {opened.height} x {opened.width}, more than {LARGEST:,} pixels"
        raise DpbenchError(what, "store a smaller image")
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format != "MPO":
        raise DpbenchError(f"{where} is animated ({frames} frames)", "store the one frame that is meant")


def _turned(opened: Image) -> Image:
    """Return the image turned as its EXIF data say; EXIF data that cannot be read are ignored."""
    from PIL import ImageOps

    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(opened)
    return opened


def _flat(picture: Image, mode: str) -> Image:
    """Return the picture with 8 bits a channel. Pillow itself clips grey of more bits at 255, so that most of it turns white."""
    from PIL import Image

    if picture.mode == "I" or picture.mode.startswith("I;16"):
        deep = np.asarray(picture).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"grey values from {deep.min()} to {deep.max()}")
        picture = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("grey values are floats")
    return picture.convert(mode)

"""Images as users' files have them: the right pixels, or one error that names the row."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dpbench.data import images, registry
from dpbench.data.remarks import collected
from dpbench.errors import DpbenchError

GREY, COLOUR = {"channels": 1, "height": 6, "width": 4}, {"channels": 3, "height": 6, "width": 4}
FIT = COLOUR | {"fit": True}
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
RAW = PIXELS.tobytes()


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def png(pixels, depth, colour):
    """A PNG written by hand, for kinds that Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def one(value, image=COLOUR):
    """[H, W, C] of a single value."""
    return images.decode([value], image, "here")[0].transpose(1, 2, 0)


def refused(value, image=COLOUR, others=(RAW,)):
    with pytest.raises(DpbenchError) as caught:
        images.decode([*others, value], image, "here")
    number = len(others)
    assert caught.value.what.startswith(f"here: row {number + 1} (row {number} counted from 0) ")
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_grey_in_a_set_of_colour_stands_in_all_channels(kind):
    grey = PIXELS[..., 0]
    assert np.array_equal(one(encoded(grey, kind, **({"lossless": True} if kind == "WEBP" else {}))), np.dstack([grey] * 3))


def test_colour_in_a_set_of_grey_is_its_luminance():
    expected = PIXELS.astype(float) @ [0.299, 0.587, 0.114]
    assert abs(one(encoded(PIXELS), GREY)[..., 0] - expected).max() <= 1


def test_sixteen_bits_of_grey_keep_their_contrast():
    deep = np.array(
        [[0, 1, 255, 256], [257, 32767, 32768, 65535], *np.random.default_rng(0).integers(0, 65536, (4, 4))], np.uint16
    )
    pixels = one(encoded(deep), GREY)[..., 0]
    assert np.array_equal(pixels, np.round(deep / 257).astype(np.uint8))
    assert np.array_equal(one(png(deep, 16, 0), GREY)[..., 0], pixels)
    assert np.array_equal(one(encoded(deep), COLOUR), np.dstack([pixels] * 3))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_sixteen_bits_of_colour_or_alpha_keep_their_contrast(colour, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (6, 4, channels))
    if channels in (2, 4):
        deep[..., -1] = 65535
    pixels = one(png(deep, 16, colour)).astype(int)
    expected = deep[..., :3] if channels > 2 else deep[..., [0, 0, 0]]
    assert abs(pixels - expected / 257).max() <= 1


def test_palettes_and_bits():
    palette = Image.fromarray(PIXELS).quantize(4, dither=Image.Dither.NONE)
    assert np.array_equal(one(encoded(palette)), np.asarray(palette.convert("RGB")))
    bits = PIXELS[..., 0] > 127
    assert np.array_equal(one(encoded(Image.fromarray(bits)), GREY)[..., 0], bits * 255)


def test_cmyk_is_turned_to_colour():
    flat = np.zeros((6, 4, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    picture = Image.fromarray(flat).convert("CMYK")
    assert abs(one(encoded(picture, "JPEG", quality=100)).astype(int) - flat).max() <= 8


@pytest.mark.parametrize(("alpha", "says"), [(255, False), (0, True), (254, True)])
def test_an_alpha_channel_is_left_out_and_said_where_it_is_used(alpha, says):
    rgba = np.dstack([PIXELS, np.full((6, 4), 255, np.uint8)])
    rgba[2, 3, 3] = alpha
    with collected() as remarks:
        assert np.array_equal(one(encoded(rgba)), PIXELS)
    assert remarks == (["here: 1 of 1 images are transparent in places; the colour below is used"] if says else [])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(orientation):
    """As its EXIF says: the stored picture is what Pillow's own function turns to the upright one."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (6, 4) if orientation < 5 else (4, 6)
    stored = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    value = encoded(stored, "PNG", exif=exif)
    assert np.array_equal(one(value), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(value)))))


@pytest.mark.parametrize("exif", [b"Exif\0\0broken", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""])
def test_exif_data_that_cannot_be_read_turn_nothing(exif):
    assert np.array_equal(one(encoded(PIXELS, "PNG", exif=exif)), PIXELS)


def test_a_telephone_s_jpeg_with_further_views_is_its_first():
    first = Image.fromarray(np.full((6, 4, 3), 200, np.uint8))
    value = encoded(first, "MPO", save_all=True, append_images=[Image.fromarray(np.zeros((6, 4, 3), np.uint8))])
    assert abs(one(value).astype(int) - 200).max() <= 2


@pytest.mark.parametrize(
    "magic", [b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x10", b"\xff\xd8\xff\xdb", b"RIFF", b"\x89PNG", b"BM", b"GIF8"]
)
def test_raw_pixels_that_look_like_an_image_header_are_pixels(magic):
    value = magic + RAW[len(magic) :]
    assert one(value).tobytes() == value


def padded_to_raw(value, image):
    """The same image in as many bytes as its raw pixels have."""
    size = image["channels"] * image["height"] * image["width"]
    return value + bytes(size - len(value)) if len(value) <= size else None


def test_an_encoded_image_as_long_as_raw_pixels_is_decoded():
    shape = {"channels": 3, "height": 40, "width": 40}
    flat = np.full((40, 40, 3), 77, np.uint8)
    for kind in ("PNG", "JPEG"):
        value = padded_to_raw(encoded(flat, kind), shape)
        assert abs(images.decode([value], shape, "here").astype(int) - 77).max() <= 1


def test_a_jpeg_cut_to_the_length_of_raw_pixels_is_refused():
    shape = {"channels": 3, "height": 40, "width": 40}
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    jpeg = encoded(noise, "JPEG", quality=100, subsampling=0)
    assert len(jpeg) > 4800
    no_header = b"\xff\xd8\xff\xdb" + jpeg[jpeg.index(b"\xff\xdb") + 2 :]
    for cut in (jpeg[:4800], no_header[:4800]):
        assert "is not a readable image" in refused(cut, shape, others=[jpeg, jpeg]).what


BAD = {
    "no bytes": (b"", "holds 0 bytes", "fetch"),
    "nothing": (None, "holds no bytes", "to_parquet"),
    "a byte less": (RAW[:-1], "holds 71 bytes, neither a PNG, WebP or JPEG nor 6 x 4 x 3", "fetch"),
    "16 bits raw": (RAW * 2, "holds 144 bytes", "of 16 bits, scale them to 0 to 255"),
    "floats raw": (PIXELS.astype("f4").tobytes(), "holds 288 bytes", "of 32 bits"),
    "doubles raw": (PIXELS.astype("f8").tobytes(), "holds 576 bytes", "of 64 bits"),
    "one channel raw": (PIXELS[..., 0].tobytes(), "holds 24 bytes", "fetch"),
    "a BMP": (encoded(PIXELS, "BMP"), "neither a PNG, WebP or JPEG", "begins as a BMP"),
    "a GIF": (encoded(PIXELS, "GIF"), "neither a PNG, WebP or JPEG", "begins as a GIF"),
    "a TIFF": (encoded(PIXELS, "TIFF"), "neither a PNG, WebP or JPEG", "begins as a TIFF"),
    "an SVG": (b"<svg></svg>", "neither", "begins as a SVG"),
    "an HTML page": (b"<html>404</html>", "holds 16 bytes", "fetch"),
    "base64": (b"iVBORw0KGgo", "holds 11 bytes", "fetch"),
    "a PNG's signature alone": (b"\x89PNG\r\n\x1a\n", "is not a readable image", "fetch"),
    "half a PNG": (encoded(PIXELS)[:60], "is not a readable image", "fetch"),
    "a PNG without its data": (png(PIXELS, 8, 2)[:33], "is not a readable image", "fetch"),
    "a PNG of no size": (png(np.zeros((0, 0, 3)), 8, 2), "is not a readable image|is 0 x 0", "."),
    "a JPEG cut": (encoded(PIXELS, "JPEG")[:300], "is not a readable image", "fetch"),
    "a WebP cut": (encoded(PIXELS, "WEBP")[:30], "is not a readable image", "fetch"),
    "RIFF of a sound": (b"RIFF\x24\0\0\0WAVEfmt ", "is not a readable image", "fetch"),
    "a row less": (encoded(PIXELS[:5]), "is 5 x 4, not 6 x 4", "store images of 6 x 4"),
    "lying": (encoded(PIXELS.transpose(1, 0, 2)), "is 4 x 6, not 6 x 4", "height first"),
    "animated": (
        encoded(Image.fromarray(PIXELS), "PNG", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]),
        r"is animated \(2 frames\)",
        "one frame",
    ),
    "an animated WebP": (
        encoded(Image.fromarray(PIXELS), "WEBP", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]),
        r"is animated \(2 frames\)",
        "one frame",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("image", [COLOUR, FIT], ids=["as it is", "fit"])
def test_bad_images_are_named_by_their_row(case, image):
    value, what, hint = BAD[case]
    if image is FIT and case in ("a row less", "lying"):
        pytest.skip("another size is cut and resized there")
    error = refused(value, image)
    assert re.search(what, error.what)
    assert re.search(hint, error.hint)
    assert "BytesIO" not in str(error)


@pytest.mark.parametrize("image", [COLOUR, FIT], ids=["as it is", "fit"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(image):
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    error = refused(b"\x89PNG\r\n\x1a\n" + data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")), image)
    assert re.search("more than 64,000,000 pixels|exceeds limit", error.what)


def cifar(put, values, kind=None):
    array = pa.array(values, kind)
    good = [bytes(3072)] * 10
    labels = [number % 10 for number in range(len(values))]
    return put("cifar10", others={"img": good, "label": list(range(10))}, train={"img": array, "label": labels})


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_a_path_without_bytes_is_named_by_its_row(put):
    file = cifar(put, [{"bytes": bytes(3072), "path": None}, {"bytes": None, "path": "img/1.png"}], STRUCT)
    with pytest.raises(DpbenchError, match=r"row 2 \(row 1 counted from 0\) holds no bytes") as caught:
        registry.load("cifar10", "train", registry.resolve("cifar10"))
    assert str(file) in caught.value.what


@pytest.mark.parametrize(
    ("values", "kind", "what"),
    [
        (["img/1.png"], pa.string(), "holds string, not images"),
        ([{"path": "img/1.png"}], pa.struct([("path", pa.string())]), "not images"),
        ([{"bytes": "text", "path": None}], pa.struct([("bytes", pa.string()), ("path", pa.string())]), "not images"),
        ([[0] * 3072], pa.list_(pa.uint8()), "not images"),
        ([[[[0.5] * 3] * 32] * 32], None, "not images"),
        ([[[[0] * 32] * 32] * 3], pa.list_(pa.list_(pa.list_(pa.uint8()))), "not images"),
        ([0], pa.int64(), "not images"),
        ([None], STRUCT, r"has 1 missing values, the first in row 1 "),
        ([None], pa.binary(), r"has 1 missing values"),
        ([b""], pa.binary(), r"row 1 .*holds 0 bytes"),
    ],
)
def test_columns_that_hold_no_images_are_refused(values, kind, what, put):
    file = cifar(put, values, kind)
    with collected(), pytest.raises(DpbenchError, match=what) as caught:
        registry.load("cifar10", "train", registry.resolve("cifar10"))
    assert str(file) in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(3072)], ids=str)
def test_every_type_of_bytes_is_read(kind, put):
    value = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cifar(put, [value.tobytes()], kind)
    with collected():
        loaded_images = registry.load("cifar10", "train", registry.resolve("cifar10")).columns["image"]
    assert np.array_equal(loaded_images[0], value.transpose(2, 0, 1))

"""Images: raw bytes and encoded ones, what is refused, and stand-ins that are worth training on."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dpbench import plugins
from dpbench.data import images, registry
from dpbench.data.synthetic import stand_in
from dpbench.errors import DpbenchError

GREY, COLOUR = {"channels": 1, "height": 6, "width": 4}, {"channels": 3, "height": 6, "width": 4}


def pixels(channels, rows=3):
    return np.random.default_rng(0).integers(0, 256, (rows, 6, 4, channels), dtype=np.uint8)


def encoded(image, kind, **options):
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(("image", "channels"), [(GREY, 1), (COLOUR, 3)])
def test_raw_bytes_are_rows_of_pixels(image, channels):
    originals = pixels(channels)
    decoded = images.decode([one.tobytes() for one in originals], image, "here")
    assert decoded.shape == (3, channels, 6, 4)
    assert np.array_equal(decoded, originals.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_lossless_images_keep_every_pixel(kind, options):
    originals = pixels(3)
    decoded = images.decode([encoded(one, kind, **options) for one in originals], COLOUR, "here")
    assert np.array_equal(decoded, originals.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"\x00" * 25, r"row 2 \(row 1 counted from 0\) holds 25 bytes"),
        (b"\x89PNG but no more", r"row 2 \(row 1 counted from 0\) is not a readable image"),
        (encoded(pixels(3)[0, :5], "PNG"), r"row 2 \(row 1 counted from 0\) is 5 x 4, not 6 x 4"),
    ],
)
def test_a_bad_image_is_named_by_its_row(value, says):
    with pytest.raises(DpbenchError, match=says):
        images.decode([bytes(72), value], COLOUR, "here")


@pytest.mark.parametrize("stored", ["bytes", "fixed", "struct"])
def test_a_local_folder_gives_pixels(stored, tmp_path, monkeypatch):
    plugin = plugins.get("dataset", "mnist")
    folder = tmp_path / "data" / plugin.extra["folder"]
    folder.mkdir(parents=True)
    originals = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    values = pa.array([i.tobytes() for i in originals], pa.binary(784) if stored == "fixed" else pa.binary())
    if stored == "struct":
        values = [{"bytes": encoded(i, "PNG"), "path": None} for i in originals]
    for file in plugin.extra["files"].values():
        pq.write_table(pa.table({"image": values, "label": [0, 1, 2, 3, 9]}), folder / file)
    monkeypatch.setenv("DPBENCH_DATA", str(folder.parent))
    source = registry.resolve("mnist")
    assert registry.check("mnist", source) == {"train": 5, "test": 5}
    examples = registry.load("mnist", "test", source, limit=3)
    assert len(examples) == 3
    assert np.array_equal(examples.columns["image"], originals[:3].transpose(0, 3, 1, 2))
    pq.write_table(pa.table({"image": ["text"], "label": [0]}), folder / plugin.extra["files"]["train"])
    with pytest.raises(DpbenchError, match="holds string, not images"):
        registry.check("mnist", registry.resolve("mnist"))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_stand_ins_have_the_size_of_what_they_stand_for(name):
    image = plugins.get("dataset", name).extra["image"]
    examples = registry.load(name, "test", registry.resolve(name, "embedded"))
    assert examples.columns["image"].shape == (1000, image["channels"], image["height"], image["width"])
    assert examples.columns["image"].dtype == np.uint8
    counts = np.bincount(examples.columns["label"], minlength=10)
    assert counts.min() > 60


@pytest.mark.parametrize("name", ["grey_shapes", "colour_shapes"])
def test_shapes_are_learnable_but_not_by_a_linear_model(name):
    def data(split):
        columns = stand_in(name).generate(split)
        x = np.stack([np.frombuffer(i, np.uint8) for i in columns["image"]]).astype(np.float32) / 255
        size, channels = (28, 1) if name == "grey_shapes" else (32, 3)
        x = torch.tensor(x.reshape(-1, size, size, channels).transpose(0, 3, 1, 2).copy())
        return x - x.mean((1, 2, 3), keepdim=True), torch.tensor(columns["label"])

    (x, y), (test_x, test_y) = data("train"), data("test")

    def accuracy(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(6):
            for rows in torch.randperm(len(y)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        return float((model(test_x).argmax(1) == test_y).float().mean())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        channels = x.shape[1]
        convolutions = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 16, 5, 2), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, 2), torch.nn.ReLU(),
            torch.nn.AdaptiveMaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(128, 10),
        )  # fmt: skip
        linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 10))
        assert accuracy(convolutions) > 0.5
        assert accuracy(linear) < 0.4

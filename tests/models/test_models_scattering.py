"""The scattering transform: against its definition in space, and what each example's features may depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import pad

from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import image_classification as image
from dpbench.jobs import image_features
from dpbench.models import registry as models
from dpbench.models.scattering import Scattering, build, morlet, shape
from dpbench.spec.sources import Source
from dpbench.tasks.image_classification.task import ImageTask
from dpbench.validation import parse


def around(filter, n, step):
    """A filter on the circle of n as it stands at every step-th position, weighted so that its sum stays: no transforms."""
    canvas = torch.zeros(n, n, dtype=filter.dtype)
    for y in range(filter.shape[0]):
        for x in range(filter.shape[1]):
            canvas[(y - 2 * n) % n, (x - 2 * n) % n] += filter[y, x]
    return canvas[::step, ::step] * step**2


def convolved(x, filter):
    """Circular, by its sum."""
    n = x.shape[-1]
    out = torch.zeros(n, n, dtype=filter.dtype)
    for y in range(n):
        for k in range(n):
            out += x[y, k] * filter.roll((y, k), (0, 1))
    return out


def gaussian(n, width):
    at = torch.arange(-2 * n, 3 * n, dtype=torch.float64)
    return torch.exp(-(at[:, None] ** 2 + at**2) / (2 * width**2)) / (2 * math.pi * width**2)


def oracle(picture, scales, angles):
    """[paths, N / 2^J, N / 2^J] in fp64, from the definition: convolutions as sums, sampled by taking every so-many-th value."""
    margin = 2**scales
    x = pad(picture[None, None], (margin,) * 4, mode="reflect")[0, 0]
    n, inner = x.shape[-1], slice(1, -1)  # the margin is one position after sampling at 2^J

    def wavelet(j, k, step):
        kernel = morlet(n, 0.8 * 2**j, math.pi * k / angles, 0.75 * math.pi / 2**j, 4 / angles)
        return around(kernel, n, step)

    def smooth(u, r):
        low = convolved(u, around(gaussian(n, 0.8 * 2 ** (scales - 1)), n, 2**r))
        step = 2 ** (scales - r)
        return low[::step, ::step][inner, inner]

    first = {(j, k): convolved(x, wavelet(j, k, 1)).abs()[:: 2**j, :: 2**j] for j in range(scales) for k in range(angles)}
    maps = [smooth(x, 0), *(smooth(u, j) for (j, _), u in first.items())]
    for (j, _), u in first.items():
        for later in range(j + 1, scales):
            step = 2 ** (later - j)
            maps += [smooth(convolved(u, wavelet(later, k, 2**j)).abs()[::step, ::step], later) for k in range(angles)]
    return torch.stack(maps)


def test_it_is_its_definition():
    """fp64 by sums over positions against fp64 by transforms: rounding alone is between them."""
    torch.manual_seed(0)
    picture = torch.rand(8, 8, dtype=torch.float64) * 2 - 1
    features = Scattering(8, 2, 2, torch.float64)(picture[None, None])[0, 0]
    expected_features = oracle(picture, 2, 2)
    assert features.shape == expected_features.shape == (1 + 4 + 4, 2, 2)
    assert (features - expected_features).abs().max() < 1e-12
    single = Scattering(8, 2, 2)(picture[None, None].float())[0, 0]
    assert (single - expected_features).abs().max() < 1e-5 * expected_features.abs().max()


def test_wavelets_see_no_constant_and_colours_stay_apart():
    scattering = Scattering(16, 2, 4)
    flat = scattering(torch.full((1, 1, 16, 16), 0.7))
    assert torch.allclose(flat[:, :, 0], torch.tensor(0.7), atol=1e-5)
    assert flat[:, :, 1:].abs().max() < 1e-5
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(scattering(x)[:, 1], scattering(x[:, 1:2])[:, 0], atol=1e-6)


def test_features_of_an_example_are_its_own():
    model = build(3, 32)
    x = torch.randn(5, 3, 32, 32)
    features = model(x)
    assert features.shape[1:] == tuple(shape(3, 32).values()) == (243, 4, 4)
    assert torch.allclose(model(x[2:3])[0], features[2], atol=1e-5)
    assert not any(True for _ in model.parameters())


def test_a_moved_picture_has_nearly_its_own_features():
    """By one pixel of 32, under a low-pass of width 1.6: that is what scattering is for. Pixels move by far more."""
    torch.manual_seed(0)
    wide = torch.nn.functional.avg_pool2d(torch.randn(1, 1, 68, 68), 4, 1)
    a, b = wide[..., :32, :32], wide[..., :32, 1:33]
    scattering = Scattering(32, 2, 8)
    assert (scattering(a) - scattering(b)).norm() / scattering(a).norm() < 0.6 * (a - b).norm() / a.norm()


def test_sizes_and_families_are_named():
    with pytest.raises(DpbenchError, match=r"scattering takes images of .* not 30 x 30"):
        models.image_features("scattering", {"channels": 1, "height": 30, "width": 30})
    with pytest.raises(DpbenchError, match="unknown image features model 'cnn4'"):
        models.image_features("cnn4", {"channels": 1, "height": 28, "width": 28})


def test_a_run_trains_on_what_its_parent_left(tmp_path, as_parent):
    """Features in the order of the images, split by split; no dataset is read again."""
    sources = {"dataset:cifar10": datasets.resolve("cifar10", "embedded")}
    folder = tmp_path / "features"
    folder.mkdir()
    parent_settings = parse(image_features.Settings, {"dataset": "cifar10", "model": "scattering", "train_limit": 24}, "test")
    done = image_features.run(parent_settings, Context(folder, 0, sources, StepLog(folder / "steps.jsonl")))
    assert done.facts["rows"] == {"train": 24, "test": 1000}
    as_parent(folder, "image_features", done.artefacts)
    run_settings = {
        "dataset": "cifar10",
        "model": "linear",
        "features": "scattering",
        "method": "bookkeeping",
        "clipping": {"function": "auto_s"},
        "epsilon": 8,
        "steps": 2,
        "expected_batch_size": 12,
        "optimizer": {"learning_rate": 0.1},
        "train_limit": 24,
        "train_evaluated": 24,
    }
    settings = parse(image.Settings, run_settings, "test")
    assert image.parents(settings, 3)["features"][1] == parent_settings.model_dump()
    run_folder = tmp_path / "own"
    run_folder.mkdir()
    scratch = {"model:linear": Source(kind="scratch")}
    context = Context(run_folder, 0, scratch, StepLog(run_folder / "steps.jsonl"), parents={"features": folder})
    task = ImageTask(settings, context)
    pixels = datasets.load("cifar10", "train", sources["dataset:cifar10"], 24).columns
    features = build(3, 32)(torch.from_numpy(pixels["image"]).float() / 127.5 - 1)
    assert torch.allclose(task.splits["train"][0].float(), features, atol=4e-3)  # kept in fp16: half a unit at 4 is 2e-3
    assert task.splits["train"][1].tolist() == pixels["label"]
    result = image.run(settings, context)
    assert result.facts["train_rows"] == 24
    assert result.facts["unprotected"] == []


def test_features_have_no_pixels_to_move():
    with pytest.raises(DpbenchError, match="augmentation moves pixels"):
        parse(
            image.Settings,
            {
                "dataset": "cifar10",
                "model": "linear",
                "features": "scattering",
                "method": "nonprivate",
                "steps": 1,
                "expected_batch_size": 2,
                "optimizer": {"learning_rate": 0.1},
                "augmentation": {},
            },
            "test",
        )

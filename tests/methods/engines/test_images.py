"""Image classifiers under every engine of ours, in every memory format and way of a convolution, against the fp64 loop."""

from __future__ import annotations

import pytest
import torch
from small_models import gradients, mechanism, relative
from torch import nn
from torch.nn.functional import cross_entropy

from dpbench.kernels.conv import cpu
from dpbench.kernels.weight_standard_conv.module import WeightStandardConv2d

CHANNELS = {"grey": 1, "colour": 3}
SCOPES = [
    ("bookkeeping", "flat"),
    ("bookkeeping", "per_layer"),
    ("ghost", "flat"),
    ("fused", "per_layer"),
    ("fused", "per_tensor"),
]
LIMITS = {
    "as they are": {},
    "an example a chunk": {"CHUNK": {"cpu": 1}},
    "nothing kept": {"KEPT": 0},
    "norms first": {"GRAM_BELOW": float("inf")},
}


def model(channels: int) -> nn.Module:
    """Overlapping windows, pooling, GroupNorm, both kinds of convolution; 8 x 8 images."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 4, 2, padding=2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.GroupNorm(2, 6),
        WeightStandardConv2d(6, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 8, 2, groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def images(channels: int, batch: int, last: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Gradients on both sides of the bound; the first is exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, channels, 8, 8, generator=generator)
    if last:
        pixels = torch.empty(pixels.shape, memory_format=torch.channels_last).copy_(pixels)
    labels = torch.randint(0, 5, (batch,), generator=generator)
    return {"image": pixels, "label": labels, "weight": torch.linspace(0.0, 1.0, batch) if batch > 1 else torch.ones(1)}


def losses(net, batch):
    pixels = batch["image"].to(next(net.parameters()).dtype)
    return cross_entropy(net(pixels), batch["label"], reduction="none") * batch["weight"]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("colour", CHANNELS)
@pytest.mark.parametrize(("name", "scope"), SCOPES)
def test_image_models_are_the_oracles(name, scope, colour, last, limits, monkeypatch, poisoned_empty):
    for constant, value in LIMITS[limits].items():
        monkeypatch.setattr(cpu, constant, value)
    net, plan = model(CHANNELS[colour]), mechanism(scope, bound=1.0)
    batches = [images(CHANNELS[colour], size, last, seed) for seed, size in enumerate((5, 1, 2))]
    expected, oracle = gradients("loop", net, plan, batches, losses, torch.float64)
    assert 0 < oracle.clipped_fraction < 1, "the images do not make clipping bite"
    actual, handle = gradients(name, net, plan, batches, losses)
    assert relative(actual, expected) < 1e-5
    assert handle.clipped_fraction == oracle.clipped_fraction

"""A small CNN for CIFAR-10 that two cores can train privately from scratch: three convolutions, tanh."""

from __future__ import annotations

from torch import nn

PLUGIN = {
    "kind": "model",
    "name": "cifar_cnn",
    "version": 1,
    "summary": "3 convolutions of width 16, 32, 64 with tanh for 32 x 32 images: 33,834 parameters on CIFAR-10",
    "family": "image",
    "pretrained": False,
    "synthetic": False,
    "architecture": {"image_sizes": [32], "widths": [16, 32, 64]},
    "licence": "Apache-2.0",
    "citation": "ours, after the CIFAR-10 CNN of Papernot et al., AAAI 2021, at a fraction of its width",
}


def build(channels: int, size: int, classes: int) -> nn.Module:
    """Build the classifier [B, channels, 32, 32] -> [B, classes]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, classes))

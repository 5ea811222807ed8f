"""The 4-layer CNN of the DP literature for MNIST: two convolutions, two linear layers, tanh."""

from __future__ import annotations

from torch import nn

PLUGIN = {
    "kind": "model",
    "name": "cnn4",
    "version": 1,
    "summary": "4-layer CNN with tanh for 28 x 28 images: 26,010 parameters on MNIST",
    "family": "image",
    "pretrained": False,
    "synthetic": False,
    "architecture": {"image_sizes": [28], "widths": [16, 32], "hidden": 32},
    "licence": "Apache-2.0",
    "citation": "Papernot et al., AAAI 2021 (tempered sigmoids); Tramer and Boneh, ICLR 2021",
}


def build(channels: int, size: int, classes: int) -> nn.Module:
    """Build the classifier [B, channels, 28, 28] -> [B, classes]."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 8, 2, padding=2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.Tanh(),
        nn.Linear(32, classes),
    )

"""Wide ResNet 16-4 with GroupNorm and standardised convolutions."""

from __future__ import annotations

from torch import nn

from dpbench.kernels.weight_standard_conv.module import WeightStandardConv2d
from dpbench.models.vision import WideBlock, group_norm

PLUGIN = {
    "kind": "model",
    "name": "wrn16_4",
    "version": 1,
    "summary": "Wide ResNet 16-4, GroupNorm, standardised convolutions: 2.8 M parameters on CIFAR-10",
    "family": "image",
    "pretrained": False,
    "synthetic": False,
    "architecture": {"image_sizes": [32, 64], "depth": 16, "width": 4, "groups": 16},
    "licence": "Apache-2.0",
    "citation": "De et al., 2022, arXiv 2204.13650; Zagoruyko and Komodakis, BMVC 2016",
}


def build(channels: int, size: int, classes: int) -> nn.Module:
    """Build the classifier [B, channels, size, size] -> [B, classes]."""
    layers: list[nn.Module] = [WeightStandardConv2d(channels, 16, 3, padding=1)]
    inputs = 16
    for outputs, stride in ((64, 1), (128, 2), (256, 2)):
        layers += [WideBlock(inputs, outputs, stride), WideBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(
        *layers, group_norm(inputs, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
    )

"""ResNet-9 with GroupNorm and Mish."""

from __future__ import annotations

from torch import nn

from dpbench.models.vision import ConvNormAct, Residual

PLUGIN = {
    "kind": "model",
    "name": "resnet9",
    "version": 1,
    "summary": "ResNet-9 with GroupNorm and Mish: 2.4 M parameters on CIFAR-10",
    "family": "image",
    "pretrained": False,
    "synthetic": False,
    "architecture": {"image_sizes": [32, 64, 128, 224], "widths": [64, 128, 256, 256]},
    "licence": "Apache-2.0",
    "citation": "Klause et al., 2022, arXiv 2203.00324, without their scale normalisation",
}


def build(channels: int, size: int, classes: int) -> nn.Module:
    """Build the classifier [B, channels, size, size] -> [B, classes]; the head receives the last 2 x 2 positions separately."""
    return nn.Sequential(
        ConvNormAct(channels, 64),
        ConvNormAct(64, 128, pool=True),
        Residual(nn.Sequential(ConvNormAct(128, 128), ConvNormAct(128, 128))),
        ConvNormAct(128, 256, pool=True),
        ConvNormAct(256, 256, pool=True),
        Residual(nn.Sequential(ConvNormAct(256, 256), ConvNormAct(256, 256))),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256 * 2 * 2, classes),
    )

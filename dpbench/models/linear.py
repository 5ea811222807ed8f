"""A linear classifier of feature maps."""

from __future__ import annotations

from torch import nn

PLUGIN = {
    "kind": "model",
    "name": "linear",
    "version": 1,
    "summary": "linear classifier, for features of a frozen model",
    "family": "image",
    "pretrained": False,
    "synthetic": False,
    "architecture": {"image_sizes": [3, 4, 8]},
    "licence": "Apache-2.0",
    "citation": "ours",
}


def build(channels: int, size: int, classes: int) -> nn.Module:
    """Build the classifier [B, channels, size, size] -> [B, classes]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))

"""Blocks of image classifiers. None of them mixes examples: they have GroupNorm, never batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpbench.kernels.weight_standard_conv.module import WeightStandardConv2d


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Return a GroupNorm with `groups` groups, or one group a channel where there are fewer channels."""
    return nn.GroupNorm(min(groups, channels), channels)


class ConvNormAct(nn.Sequential):
    """Convolution 3 x 3, GroupNorm over 32 groups, Mish; then 2 x 2 max pooling if `pool`."""

    def __init__(self, inputs: int, outputs: int, pool: bool = False) -> None:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), group_norm(outputs, 32), nn.Mish()]
        super().__init__(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """A residual connection: x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class WideBlock(nn.Module):
    """Pre-activation block of a wide residual net: twice GroupNorm (16 groups), ReLU, standardised convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs, 16), group_norm(outputs, 16)
        self.conv1 = WeightStandardConv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = WeightStandardConv2d(outputs, outputs, 3, padding=1)
        self.shortcut = WeightStandardConv2d(inputs, outputs, 1, stride) if inputs != outputs or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        return skip + self.conv2(torch.relu(self.norm2(self.conv1(y))))

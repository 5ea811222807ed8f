"""Standardised convolutions: a plain convolution's gradient of one example, pulled back through the standardisation."""

from __future__ import annotations

from dpbench.kernels.conv.cpu import ConvLeaf
from dpbench.kernels.leaf import Sums, Use
from dpbench.kernels.weight_standard_conv.module import WeightStandardConv2d, standardised


class WeightStandardConvLeaf(ConvLeaf):
    """`WeightStandardConv2d`: weight [O, C / groups, ...], bias [O]."""

    modules = (WeightStandardConv2d,)

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        if "weight" not in into:
            super().add_example(use, index, into)
            return
        own = self.buffers(use.g)
        super().add_example(use, index, own)
        weight, scale = standardised(self.module.weight.detach().to(own["weight"].dtype))
        inputs = tuple(range(1, weight.dim()))
        g = own["weight"]
        along = (weight * g).sum(inputs, keepdim=True)
        into["weight"].add_((g - g.mean(inputs, keepdim=True) - weight * along) * scale)
        if "bias" in into:
            into["bias"].add_(own["bias"])

"""Standardised convolutions: the gradients of a plain convolution, pulled back through the standardisation."""

from __future__ import annotations

from torch import Tensor

from dpbench.kernels.conv.cpu import ConvLeaf
from dpbench.kernels.weight_standard_conv.module import WeightStandardConv2d, standardised


class WeightStandardConvLeaf(ConvLeaf):
    """`WeightStandardConv2d`: weight [O, C / groups, ...], bias [O]."""

    modules = (WeightStandardConv2d,)
    module: WeightStandardConv2d
    norms_of_products = False

    def pulled_back(self, products: Tensor) -> Tensor:
        weight, scale = standardised(self.module.weight.detach().to(products.dtype))
        weight, scale = weight.movedim(1, -1).flatten(1), scale.view(-1, 1)
        along = (products * weight).sum(2, keepdim=True)
        return products.sub(products.mean(2, keepdim=True)).sub_(weight * along).mul_(scale)

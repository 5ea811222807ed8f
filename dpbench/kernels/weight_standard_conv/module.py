"""The module: a leaf that holds its weight without a parametrisation, so that engines serve it like any layer."""

from __future__ import annotations

from torch import Tensor, nn

EPS = 1e-4


class WeightStandardConv2d(nn.Conv2d):
    """`nn.Conv2d` that convolves with its weight standardised over each output channel's n inputs, to mean 0 and norm 1.

    Qiao et al., 2019 (arXiv 1903.10520), scaled by 1 / sqrt(n) as in Brock et al., 2021 (arXiv 2101.08692), without their gain.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution [B, O, H', W'] of x [B, C, H, W]."""
        return self._conv_forward(x, standardised(self.weight)[0], self.bias)


def standardised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standardised weight [O, ...] and its scale [O, 1, ...] of a weight [O, ...]."""
    inputs = tuple(range(1, weight.dim()))
    centred = weight - weight.mean(inputs, keepdim=True)
    scale = (centred.square().sum(inputs, keepdim=True) + EPS).rsqrt()
    return centred * scale, scale

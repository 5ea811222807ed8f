"""The scattering transform of an image: wavelets and moduli with fixed filters, nothing learnt and nothing looked up."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, pad

PLUGIN = {
    "kind": "model",
    "name": "scattering",
    "version": 1,
    "summary": "scattering transform of order 2, 2 scales and 8 angles: 81 x 4 x 4 features a colour, without weights",
    "family": "image_features",
    "pretrained": False,
    "synthetic": False,
    "architecture": {"image_sizes": [28, 32, 64], "scales": 2, "angles": 8},
    "licence": "Apache-2.0",
    "citation": "Bruna and Mallat, 2013; Oyallon and Mallat, CVPR 2015; under DP-SGD Tramer and Boneh, ICLR 2021",
}

SCALES, ANGLES = 2, 8
POOL = 2
"""Neighbouring positions, each way, that are averaged: from 8 x 8 to 4 x 4 for an image of 32 x 32."""
NORMALISED = 9
"""Channels of a group that is normalised together, as Tramer and Boneh found best for 243 channels (27 groups)."""


def shape(channels: int, size: int) -> dict[str, int]:
    """channels, height and width of the features of a [channels, size, size] image."""
    side = size // 2**SCALES // POOL
    return {"channels": channels * _paths(SCALES, ANGLES), "height": side, "width": side}


def build(channels: int, size: int) -> nn.Module:
    """[B, channels, size, size] in about -1 to 1 -> features [B, channels x 81, side, side], each example by itself."""
    return Features(Scattering(size, SCALES, ANGLES))


def _paths(scales: int, angles: int) -> int:
    return 1 + scales * angles + scales * (scales - 1) // 2 * angles**2


class Features(nn.Module):
    """Scattering coefficients, averaged over neighbours and normalised in groups of channels of one example."""

    def __init__(self, scattering: Scattering) -> None:
        super().__init__()
        self.scattering = scattering

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(self.scattering(x).flatten(1, 2), POOL)
        return group_norm(pooled, pooled.shape[1] // NORMALISED)


class Scattering(nn.Module):
    """[B, C, N, N] -> [B, C, paths, N / 2^J, N / 2^J], N a multiple of 2^J.

    With low-pass phi of scale 2^J and wavelets psi_{j, angle}, * circular on the reflected image, all sampled at 2^J:
    x * phi; |x * psi_1| * phi; ||x * psi_1| * psi_2| * phi for j_2 > j_1. |x * psi_1| is kept at every 2^j_1-th position, and a
    filter meets it as it stands at those positions. Wavelets are Morlet's, with the constants of Andreux et al., JMLR 2020
    (Kymatio): width 0.8 x 2^j, frequency 3/4 pi / 2^j, slant 4 / angles; phi a Gaussian of width 0.8 x 2^(J - 1).

    Guarantee: every example's features are a function of that example alone, by public constants.
    """

    def __init__(self, size: int, scales: int, angles: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scales, self.margin = scales, 2**scales
        self.padded = n = size + 2 * self.margin
        width, frequency = [0.8 * 2**j for j in range(scales)], [0.75 * math.pi / 2**j for j in range(scales)]
        for j in range(scales):
            bank = [morlet(n, width[j], math.pi * k / angles, frequency[j], 4 / angles) for k in range(angles)]
            spectra = torch.fft.fft2(torch.stack([_periodic(wavelet, n) for wavelet in bank])).real
            for r in range(j + 1):  # as it meets what is sampled at 2^r; the result is sampled at 2^j
                self._keep(f"wavelets{j}_{r}", folded(spectra, 2**r) / 4 ** (j - r), dtype)
        for r in range(scales):
            self._keep(f"low{r}", low_pass(n, width[-1], 2**r, 2**scales), dtype)

    def _keep(self, name: str, values: Tensor, dtype: torch.dtype) -> None:
        self.register_buffer(name, values.to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad(x, (self.margin,) * 4, mode="reflect")[:, :, None]
        found, second = [self._smooth(x, 0)], []
        for j in range(self.scales):
            first = self._modulus(x, 0, j)
            found.append(self._smooth(first, j))
            for later in range(j + 1, self.scales):
                second.append(self._smooth(self._modulus(first[:, :, :, None], j, later).flatten(2, 3), later))
        return torch.cat([*found, *second], dim=2)

    def _modulus(self, x: Tensor, r: int, j: int) -> Tensor:
        """[..., 1, n, n], sampled at 2^r -> |x * psi_j| for every angle [..., angles, m, m], sampled at 2^j."""
        spectrum = torch.fft.fft2(x)
        # real and imaginary planes: complex times real would be done as complex times complex
        planes = torch.stack([spectrum.real, spectrum.imag], dim=-4) * getattr(self, f"wavelets{j}_{r}")
        real, imaginary = folded(planes, 2 ** (j - r)).unbind(-4)
        return torch.fft.ifft2(torch.complex(real, imaginary)).abs()

    def _smooth(self, x: Tensor, r: int) -> Tensor:
        """[..., n / 2^r, n / 2^r] -> low-passed, every 2^J-th position, without the margin."""
        low = getattr(self, f"low{r}")
        return low @ x @ low.T


def morlet(n: int, width: float, angle: float, frequency: float, slant: float) -> Tensor:
    """[5 n, 5 n] complex: envelope x (wave - its mean), centred at [2 n, 2 n]; the envelope is longer across the wave."""
    along = torch.arange(-2 * n, 3 * n, dtype=torch.float64)
    y, x = torch.meshgrid(along, along, indexing="ij")
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    envelope = torch.exp(-(u**2 + (slant * v) ** 2) / (2 * width**2)) * slant / (2 * math.pi * width**2)
    wave = torch.polar(torch.ones_like(u), frequency * u)
    return envelope * (wave - (envelope * wave).sum() / envelope.sum())


def _periodic(filter: Tensor, n: int) -> Tensor:
    """[5 n, 5 n] -> [n, n], summed over periods; the centre comes to [0, 0]."""
    return filter.view(5, n, 5, n).sum((0, 2))


def low_pass(n: int, width: float, step: int, sampled: int) -> Tensor:
    """[kept, n / step]: a Gaussian on a circle of n, from every step-th position to every `sampled`-th, without the margins."""
    at = torch.arange(-2 * n, 3 * n, dtype=torch.float64)
    circle = (torch.exp(-(at**2) / (2 * width**2)) / (math.sqrt(2 * math.pi) * width)).view(5, n).sum(0)
    out, positions = torch.arange(sampled, n - sampled, sampled), torch.arange(0, n, step)
    return circle[(out[:, None] - positions) % n] * step


def folded(spectrum: Tensor, step: int) -> Tensor:
    """[..., n, n] -> [..., n / step, n / step]: frequencies that are one at every step-th position added up.

    For a signal, over step^2, that is the spectrum at those positions; for a filter, what it is to a signal sampled there.
    """
    for dim in (-1, -2):
        spectrum = functools.reduce(torch.add, spectrum.split(spectrum.shape[dim] // step, dim))
    return spectrum

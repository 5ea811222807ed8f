"""The scattering transform of an image: wavelets and moduli with fixed filters, without learned or stored values."""

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
"""The number of neighbours in each direction that are averaged: from 8 x 8 to 4 x 4 for an image of 32 x 32."""
NORMALISED = 9
"""The channels that are normalised together; Tramer and Boneh report this to be best for 243 channels (27 groups)."""


def shape(channels: int, size: int) -> dict[str, int]:
    """Return channels, height and width of the features of a [channels, size, size] image."""
    side = size // 2**SCALES // POOL
    return {"channels": channels * _paths(SCALES, ANGLES), "height": side, "width": side}


def build(channels: int, size: int) -> nn.Module:
    """Build the map [B, channels, size, size] in about -1 to 1 -> features [B, channels x 81, side, side], by example."""
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
    """Scattering coefficients: [B, C, N, N] -> [B, C, paths, N / 2^J, N / 2^J], N a multiple of 2^J.

    With the low-pass phi of scale 2^J and wavelets psi_{j, angle}, where * is circular on the reflected image, the coefficients
    are x * phi; |x * psi_1| * phi; ||x * psi_1| * psi_2| * phi for j_2 > j_1, all sampled at 2^J. |x * psi_1| is kept at every
    2^j_1-th position, and the next filter is sampled at those positions. Wavelets are Morlet's, with the constants of Andreux et
    al., JMLR 2020 (Kymatio): width 0.8 x 2^j, frequency 3/4 pi / 2^j, slant 4 / angles; phi is a Gaussian of width
    0.8 x 2^(J - 1).

    Guarantee: the features of an example are a function of that example alone, with public constants.
    """

    def __init__(self, size: int, scales: int, angles: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scales, self.margin = scales, 2**scales
        self.padded = n = size + 2 * self.margin
        width, frequency = [0.8 * 2**j for j in range(scales)], [0.75 * math.pi / 2**j for j in range(scales)]
        for j in range(scales):
            bank = [morlet(n, width[j], math.pi * k / angles, frequency[j], 4 / angles) for k in range(angles)]
            spectra = torch.fft.fft2(torch.stack([_periodic(wavelet, n) for wavelet in bank])).real
            for r in range(j + 1):  # for input sampled at 2^r; the result is sampled at 2^j
                self._keep(f"wavelets{j}_{r}", folded(spectra, 2**r) / 4 ** (j - r), dtype)
        for r in range(scales):
            self._keep(f"low{r}", low_pass(n, width[-1], 2**r, 2**scales), dtype)

    def _keep(self, name: str, values: Tensor, dtype: torch.dtype) -> None:
        self.register_buffer(name, values.to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad(x, (self.margin,) * 4, mode="reflect")[:, :, None]
        coefficients, second = [self._smooth(x, 0)], []
        for j in range(self.scales):
            first = self._modulus(x, 0, j)
            coefficients.append(self._smooth(first, j))
            for later in range(j + 1, self.scales):
                second.append(self._smooth(self._modulus(first[:, :, :, None], j, later).flatten(2, 3), later))
        return torch.cat([*coefficients, *second], dim=2)

    def _modulus(self, x: Tensor, r: int, j: int) -> Tensor:
        """Map [..., 1, n, n], sampled at 2^r, to |x * psi_j| for every angle [..., angles, m, m], sampled at 2^j."""
        spectrum = torch.fft.fft2(x)
        # real and imaginary planes: torch computes complex times real as complex times complex
        planes = torch.stack([spectrum.real, spectrum.imag], dim=-4) * getattr(self, f"wavelets{j}_{r}")
        real, imaginary = folded(planes, 2 ** (j - r)).unbind(-4)
        return torch.fft.ifft2(torch.complex(real, imaginary)).abs()

    def _smooth(self, x: Tensor, r: int) -> Tensor:
        """Low-pass [..., n / 2^r, n / 2^r] and keep every 2^J-th position, without the margin."""
        low = getattr(self, f"low{r}")
        return low @ x @ low.T


def morlet(n: int, width: float, angle: float, frequency: float, slant: float) -> Tensor:
    """Return envelope x (wave - its mean), complex [5 n, 5 n], centred at [2 n, 2 n]; the envelope is longer across the wave."""
    along = torch.arange(-2 * n, 3 * n, dtype=torch.float64)
    y, x = torch.meshgrid(along, along, indexing="ij")
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    envelope = torch.exp(-(u**2 + (slant * v) ** 2) / (2 * width**2)) * slant / (2 * math.pi * width**2)
    wave = torch.polar(torch.ones_like(u), frequency * u)
    return envelope * (wave - (envelope * wave).sum() / envelope.sum())


def _periodic(filter: Tensor, n: int) -> Tensor:
    """Sum [5 n, 5 n] over periods to [n, n]; the centre moves to [0, 0]."""
    return filter.view(5, n, 5, n).sum((0, 2))


def low_pass(n: int, width: float, step: int, sampled: int) -> Tensor:
    """Return [kept, n / step], a Gaussian on a circle of n from every step-th position to every `sampled`-th, without margins."""
    positions_of_periods = torch.arange(-2 * n, 3 * n, dtype=torch.float64)
    circle = (torch.exp(-(positions_of_periods**2) / (2 * width**2)) / (math.sqrt(2 * math.pi) * width)).view(5, n).sum(0)
    out, positions = torch.arange(sampled, n - sampled, sampled), torch.arange(0, n, step)
    return circle[(out[:, None] - positions) % n] * step


def folded(spectrum: Tensor, step: int) -> Tensor:
    """Sum the frequencies that are equal at every step-th position: [..., n, n] -> [..., n / step, n / step].

    For a signal, the result over step^2 is its spectrum at those positions; for a filter, its effect on a signal sampled there.
    """
    for dim in (-1, -2):
        spectrum = functools.reduce(torch.add, spectrum.split(spectrum.shape[dim] // step, dim))
    return spectrum

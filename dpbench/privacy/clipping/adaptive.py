"""Adaptive thresholds: each group's bound follows a quantile of its norms, released with noise at every step.

Andrew et al. (NeurIPS 2021), for each group as in He et al. (ICLR 2023). With bounds C_1..C_K a step releases for each group

    fraction_k = 1/2 + (sum_i (1[norm_i,k <= C_k] - 1/2) + N(0, count_std^2)) / expected_batch_size

and then moves C_k to C_k exp(-rate (fraction_k - quantile)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpbench.arguments import between, finite_number, flag

PLUGIN = {
    "kind": "threshold",
    "name": "adaptive",
    "version": 1,
    "summary": "bounds that follow a private quantile of the norms",
}

RANGE = 1e6
"""A bound stays within this factor of the clipping's whole bound, both ways; `rescale` follows, so that then none is below
bound / RANGE^2 or above the whole bound. Noise alone drives the bounds of a group whose batches are always empty."""


@dataclass(frozen=True)
class Adaptive:
    """quantile: share of examples that should be within the bound; rate: eta, of the bounds' logarithms; budget: r, the share of
    1 / noise_multiplier^2 that pays for the fractions; rescale: keep hypot(C_1..C_K) at the clipping's bound, so that only the
    ratios adapt.

    Sensitivity: adding or removing one example changes each centred count by exactly 1/2 up or down, so all K by sqrt(K) / 2
    together; without the centring a count changes by 0 or 1, and all by up to sqrt(K). With sums of noise multiplier
    sigma / sqrt(1 - r) and counts of std (sigma / 2) sqrt(K / r) one step is a Gaussian mechanism of
    (1 - r) / sigma^2 + (K / 4) / (sigma^2 K / (4 r)) = 1 / sigma^2: it costs what sums of noise multiplier sigma alone would.

    Without noise (noise_multiplier 0) counts are released as they are, as the sums are, and there is no epsilon: for tests alone.
    Jobs that train calibrate their noise for an epsilon, so none of them runs so.

    Raises:
        DpbenchError: a number out of range, or `rescale` that is no bool.
    """

    quantile: float
    rate: float = 0.3
    budget: float = 0.01
    rescale: bool = False

    def __post_init__(self) -> None:
        usual = "usual are quantile 0.5 to 0.7, budget 0.01"
        object.__setattr__(self, "quantile", between(self.quantile, "adaptive quantile", 0, 1, usual))
        object.__setattr__(self, "budget", between(self.budget, "adaptive budget", 0, 1, usual))
        object.__setattr__(self, "rate", finite_number(self.rate, "adaptive rate", above=0, hint="0.2 to 0.3 is usual"))
        flag(self.rescale, "adaptive rescale")

    def gradient_noise_multiplier(self, noise_multiplier: float) -> float:
        """Noise multiplier of the bounded sums, where `noise_multiplier` is that of all that a step releases."""
        return noise_multiplier / math.sqrt(1 - self.budget)

    def count_std(self, noise_multiplier: float, groups: int) -> float:
        """Noise std of each of `groups` centred counts."""
        return noise_multiplier / 2 * math.sqrt(groups / self.budget)

    def moved(self, bounds: Sequence[float], fractions: Sequence[float], whole: float) -> list[float]:
        """The next step's bounds; finite and above 0 whatever was released.

        Args:
            fractions: as released, with their noise: they may lie far outside [0, 1]; whole: the clipping's bound.
        """
        low, high = math.log(whole) - math.log(RANGE), math.log(whole) + math.log(RANGE)
        logs = [math.log(b) - self.rate * (f - self.quantile) for b, f in zip(bounds, fractions, strict=True)]
        found = [math.exp(min(max(value, low), high)) for value in logs]
        if not self.rescale:
            return found
        scale = whole / math.hypot(*found)
        return [value * scale for value in found]

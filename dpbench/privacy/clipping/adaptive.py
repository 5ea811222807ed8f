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
"""A bound stays within this factor of the clipping's total bound, in both directions. `rescale` is applied after that, and then
no bound is below total / RANGE^2 or above the total. The limits are needed because noise alone moves the bounds of a group whose
batches are always empty."""


@dataclass(frozen=True)
class Adaptive:
    """How thresholds follow a quantile of the norms.

    quantile: the share of examples that should be within the bound. rate: the learning rate eta of the bounds' logarithms.
    budget: the share r of 1 / noise_multiplier^2 that pays for the fractions. rescale: whether hypot(C_1..C_K) is kept at the
    clipping's bound, so that only the ratios adapt.

    Sensitivity: adding or removing one example changes each centred count by exactly 1/2 up or down, so all K together by
    sqrt(K) / 2. Without the centring a count changes by 0 or 1, and all by up to sqrt(K). With sums of noise multiplier
    sigma / sqrt(1 - r) and counts of std (sigma / 2) sqrt(K / r) one step is a Gaussian mechanism of
    (1 - r) / sigma^2 + (K / 4) / (sigma^2 K / (4 r)) = 1 / sigma^2: it costs as much as sums of noise multiplier sigma alone.

    Without noise (noise_multiplier 0) the counts are released without noise, as the sums are, and there is no epsilon. Only tests
    do that: jobs that train calibrate their noise for an epsilon.

    Raises:
        DpbenchError: a number is out of range, or `rescale` is no bool.
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
        """Return the noise multiplier of the bounded sums; `noise_multiplier` is that of everything that a step releases."""
        return noise_multiplier / math.sqrt(1 - self.budget)

    def count_std(self, noise_multiplier: float, groups: int) -> float:
        """Return the noise std of each of `groups` centred counts."""
        return noise_multiplier / 2 * math.sqrt(groups / self.budget)

    def moved(self, bounds: Sequence[float], fractions: Sequence[float], total_bound: float) -> list[float]:
        """Return the next step's bounds, which are finite and above 0 whatever was released.

        Args:
            fractions: The released fractions. With their noise they may be far outside [0, 1].
            total_bound: The clipping's bound on all groups together.
        """
        low, high = math.log(total_bound) - math.log(RANGE), math.log(total_bound) + math.log(RANGE)
        logs = [math.log(b) - self.rate * (f - self.quantile) for b, f in zip(bounds, fractions, strict=True)]
        moved_bounds = [math.exp(min(max(value, low), high)) for value in logs]
        if not self.rescale:
            return moved_bounds
        scale = total_bound / math.hypot(*moved_bounds)
        return [value * scale for value in moved_bounds]

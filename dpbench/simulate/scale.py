"""The cost of deep models from shallow ones, and the largest batch that fits, by linear extrapolation of few simulated steps.

Every transformer block costs the same, so FLOPs, bytes and memory of a step are linear in the number of blocks. The peaks of the
phases are extrapolated separately, because the larger of two straight lines is not straight.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dpbench.errors import DpbenchError
from dpbench.models import registry as models
from dpbench.simulate.devices import Device
from dpbench.simulate.step import Setting, Step, step

DEPTHS = (2, 3)
"""Numbers of blocks of the simulated models."""

BATCHES = (1, 8, 32)
"""Batch sizes that are simulated to find the largest that fits."""


@dataclass(frozen=True)
class Estimate:
    """The cost of a step of the complete model: peak bytes of both phases, FLOPs and bytes moved; see `Step`."""

    passes: float
    release: float
    flops: float
    moved: float
    seconds: dict[str, float]

    @property
    def peak(self) -> float:
        """Return the peak bytes of the step."""
        return max(self.passes, self.release)


def estimate(setting: Setting, devices: Sequence[Device] = (), every_block: bool = False) -> Estimate:
    """Return the cost of a step, and its roofline time on each device.

    Args:
        every_block: whether to simulate all blocks instead of extrapolating from models of `DEPTHS` blocks.
    """
    depth = models.language_model_size(setting.size)["layers"] if setting.layers is None else setting.layers
    if every_block or depth <= DEPTHS[1]:
        return _estimate_of(step(setting), setting, devices)
    low, high = (_estimate_of(step(replace(setting, layers=n)), setting, devices) for n in DEPTHS)
    blocks = (depth - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])

    def line(a: float, b: float) -> float:
        return a + (b - a) * blocks

    return Estimate(
        line(low.passes, high.passes),
        line(low.release, high.release),
        line(low.flops, high.flops),
        line(low.moved, high.moved),
        {name: line(value, high.seconds[name]) for name, value in low.seconds.items()},
    )


def _estimate_of(simulated: Step, setting: Setting, devices: Sequence[Device]) -> Estimate:
    work = simulated.work
    seconds = {d.name: work.seconds(d.bandwidth, d.half, d.single) for d in devices}
    return Estimate(simulated.passes, simulated.release, sum(work.flops), sum(work.bytes), seconds)


def largest_batch(peaks: dict[int, float], usable: float) -> int:
    """Return the largest batch size whose peak is at most `usable` bytes; 0 where not even one example fits.

    Args:
        peaks: batch size -> peak bytes, for two sizes or more. A peak is the largest of several straight lines in the batch
            size, so it is convex: between two points the chord is above it, and beyond the last point the last line continues.
    """
    sizes = sorted(peaks)
    if len(sizes) < 2:
        raise DpbenchError("one batch size gives no line", "simulate two or more")
    if peaks[sizes[0]] > usable:
        return 0
    fits = bisect.bisect_right([peaks[b] for b in sizes], usable)
    low, high = (sizes[fits - 1], sizes[fits]) if fits < len(sizes) else (sizes[-2], sizes[-1])
    slope = (peaks[high] - peaks[low]) / (high - low)
    return int(low + (usable - peaks[low]) // slope)

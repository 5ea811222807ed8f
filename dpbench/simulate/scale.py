"""Deep models from shallow ones, and the largest batch that fits: few simulated steps, read as straight lines.

Every transformer block costs the same, so a step's FLOPs, bytes and memory grow by one block's share with each; peaks are taken
apart by phase, since the larger of two straight lines is not straight.
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
"""Blocks of the models that are simulated."""

BATCHES = (1, 8, 32)
"""Batch sizes simulated to find the largest that fits."""


@dataclass(frozen=True)
class Estimate:
    """What a step of the whole model costs: peak bytes of both phases, FLOPs and bytes moved; see `Step`."""

    passes: float
    release: float
    flops: float
    moved: float
    seconds: dict[str, float]

    @property
    def peak(self) -> float:
        """Bytes."""
        return max(self.passes, self.release)


def estimate(setting: Setting, devices: Sequence[Device] = (), whole: bool = False) -> Estimate:
    """The step's cost, and its roofline time on each device.

    Args:
        whole: simulate every block instead of extrapolating from models of `DEPTHS` blocks.
    """
    depth = models.language_model_size(setting.size)["layers"] if setting.layers is None else setting.layers
    if whole or depth <= DEPTHS[1]:
        return _of(step(setting), setting, devices)
    low, high = (_of(step(replace(setting, layers=n)), setting, devices) for n in DEPTHS)
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


def _of(found: Step, setting: Setting, devices: Sequence[Device]) -> Estimate:
    work = found.work
    seconds = {d.name: work.seconds(d.bandwidth, d.half, d.single) for d in devices}
    return Estimate(found.passes, found.release, sum(work.flops), sum(work.bytes), seconds)


def largest_batch(peaks: dict[int, float], usable: float) -> int:
    """The largest batch size whose peak is at most `usable` bytes; 0 where not even one example fits.

    Args:
        peaks: batch size -> peak bytes, for two sizes or more. A peak is the largest of several straight lines in the batch
            size, so it is convex: between two points the chord lies above it, and beyond the last the last line goes on.
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

"""The exchange of an engine with the other processes of its group; in this module there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpbench.kernels.leaf import accumulation_dtype

if TYPE_CHECKING:
    from dpbench.errors import DpbenchError
    from dpbench.methods.engines.attached import Attached
    from dpbench.methods.engines.layers import Layer


@dataclass
class Tally:
    """Counts of the examples of one logical step: all, those clipped, and those with a non-finite or finite gradient."""

    examples: int = 0
    clipped: int = 0
    non_finite: int = 0
    finite: int = 0


class Exchange:
    """The exchange of a single process. `dpbench.distributed` has those of a group: replicas, shards, stages of a pipeline.

    keeps_padding: Whether padding goes through the model too, because every process must run the same operations.
    norms_wait: Whether a group's norm is known only after the backward passes of all processes, see `Handle.flush_deferred`.
    """

    keeps_padding = False
    norms_wait = False

    def new_sum(self, parameter: Tensor) -> Tensor:
        """Return unwritten memory for the sum of a parameter's bounded gradients, in fp32 or wider."""
        return torch.empty_like(parameter, dtype=accumulation_dtype(parameter))

    def record_examples(self, over: Tensor, finite: Tensor) -> None:
        """Receive the flags [B] of a physical batch: norm over a bound in a finite group, and finite in all groups."""

    def finished(self, handle: Attached, layers: Sequence[Layer]) -> None:
        """Receive the notice that the physical batch adds nothing more to these layers' sums."""

    def global_norms(self, squared: list[dict[int, Tensor]]) -> list[dict[int, Tensor]]:
        """Return the squared norms over all processes from those of this one: for each backward pass, group -> [B]."""
        return squared

    def total(self, tally: Tally, steps: int, fault: DpbenchError | None) -> Tally:
        """Return the tally over all processes, each of which is about to release its step number `steps`.

        Raises:
            DpbenchError: `fault`, or another process has one. This is before anything is released.
        """
        if fault is not None:
            raise fault
        return tally

    def summed(self, handle: Attached, parameter: Tensor) -> Tensor:
        """Return this process' part of a parameter's sum, zeros if nothing was added."""
        return handle.sum_of(parameter)

    def release_(self, handle: Attached, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Replace each (sum, std) by (sum + N(0, std^2)) / divisor, in place."""
        handle.noise.release_(sums, divisor)

    def release_counts(self, handle: Attached, counts: list[float], std: float) -> list[float]:
        """Return (counts of all processes) + N(0, std^2), for adaptive thresholds."""
        return handle.noise.on_counts(counts, std)

    def gradient(self, parameter: Tensor, released: Tensor) -> Tensor:
        """Return `released` in the form in which the optimizer takes this parameter's gradient."""
        return released.to(parameter.dtype)

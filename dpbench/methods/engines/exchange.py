"""Where an engine meets the other processes of its group; here there are none."""

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
    """Examples of one logical step: how many there were, were clipped, and had a non-finite or finite gradient."""

    examples: int = 0
    clipped: int = 0
    non_finite: int = 0
    finite: int = 0


class Exchange:
    """A process alone. `dpbench.distributed` has those of a group: replicas, shards, stages of a pipeline.

    keeps_padding: whether padding goes through the model too, because every process must run the same operations.
    norms_wait: whether a group's norm is known only once all processes have gone back, see `Handle.settle`.
    """

    keeps_padding = False
    norms_wait = False

    def new_sum(self, parameter: Tensor) -> Tensor:
        """Unwritten room for the sum of a parameter's bounded gradients, in fp32 or wider."""
        return torch.empty_like(parameter, dtype=accumulation_dtype(parameter))

    def noted(self, over: Tensor, finite: Tensor) -> None:
        """[B] examples of a physical batch: beyond a bound in a finite group; finite in all groups."""

    def finished(self, handle: Attached, layers: Sequence[Layer]) -> None:
        """The physical batch adds nothing more to these layers' sums."""

    def global_norms(self, squared: list[dict[int, Tensor]]) -> list[dict[int, Tensor]]:
        """group -> [B] squared norms that this process has of each backward pass -> those of all processes together."""
        return squared

    def total(self, tally: Tally, steps: int, fault: DpbenchError | None) -> Tally:
        """The tally over all processes, each of which is about to release its step number `steps`.

        Raises:
            DpbenchError: `fault`, or that another process has one, before anything is released.
        """
        if fault is not None:
            raise fault
        return tally

    def summed(self, handle: Attached, parameter: Tensor) -> Tensor:
        """What this process has of a parameter's sum, zeros if nothing was added."""
        return handle.sum_of(parameter)

    def release_(self, handle: Attached, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Each (sum, std) becomes (sum + N(0, std^2)) / divisor, in place."""
        handle.noise.release_(sums, divisor)

    def release_counts(self, handle: Attached, counts: list[float], std: float) -> list[float]:
        """(counts of all processes) + N(0, std^2), of adaptive thresholds."""
        return handle.noise.on_counts(counts, std)

    def gradient(self, parameter: Tensor, released: Tensor) -> Tensor:
        """`released` as what the optimizer takes for this parameter."""
        return released.to(parameter.dtype)

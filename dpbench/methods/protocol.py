"""The protocol of every way to make a training step: engines, zeroth-order methods, peers, published code, inference alone.

method = methods.attach("fused", model, optimizer, mechanism)    # in place; an error names an unsupported parameter
for batch in physical_batches:                                   # there may be none
    method.backward(losses, batch)                               # losses(model, batch) -> [B], each of that example alone
report = method.step()                                           # noise once, the optimizer's step, zero_grad
method.detach()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

    from dpbench.methods.engines.batches import Losses
    from dpbench.methods.engines.thresholds import Thresholds


@dataclass
class StepReport:
    """What one step did. Nothing here but `details` of releases is private.

    examples: how many of them this process saw; loss: their mean loss, None without examples or where it is not a number;
    clipped_fraction: share of them that was clipped, None where nothing clips; details: more for the step log.
    """

    examples: int
    loss: float | None
    clipped_fraction: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """A method that is attached to a model.

    trainable: what it trains, by name; unprotected: names of trained tensors that are released as they are; in_training_mode:
    whether forward passes of training run in the model's training mode; sensitivity: of the sum that a step releases; groups:
    how many groups of tensors are clipped by themselves; thresholds: adaptive ones, None for fixed.
    """

    trainable: Mapping[str, nn.Parameter]
    in_training_mode: bool
    thresholds: Thresholds | None

    @property
    def unprotected(self) -> list[str]: ...
    @property
    def sensitivity(self) -> float: ...
    @property
    def groups(self) -> int: ...

    def backward(self, losses: Losses, batch: Any) -> None:
        """Take in one physical batch."""

    def step(self) -> StepReport:
        """Release what was taken in, with noise, and move the weights; also for a step without examples."""
        ...

    def before_release(self, check: Callable[[int], None]) -> None:
        """Have `check` called once a step with the number of examples that are in what is released, over all processes and
        without padding. An engine calls it before the weights move."""

    def warnings(self) -> list[str]:
        """What the user should know of the steps so far."""
        ...

    def detach(self) -> None:
        """Remove every trace from model and optimizer."""

"""The protocol of all methods of making a training step: engines, zeroth-order methods, peers, published code, inference.

method = methods.attach("fused", model, optimizer, mechanism)    # in place; an error names an unsupported parameter
for batch in physical_batches:                                   # there may be none
    method.backward(losses, batch)                               # losses(model, batch) -> [B], each of that example alone
report = method.step()                                           # noise once, the optimizer's step, zero_grad
method.detach()

Between two steps `method.state_dict()` can be saved, and a method that was just attached continues from it by `load_state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

    from dpbench.methods.engines.batches import Batch, Losses
    from dpbench.methods.engines.thresholds import Thresholds


@dataclass
class StepReport:
    """What one step did. Of its fields only released values in `details` have differential privacy.

    examples: The number of examples that this process saw. loss: Their mean loss, None without examples or where it is not a
    number. clipped_fraction: The share of them that was clipped, None where nothing clips. details: Further entries of the step
    log.
    """

    examples: int
    loss: float | None
    clipped_fraction: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """A method that is attached to a model.

    trainable: The trained parameters by name. unprotected: The names of trained tensors that are released without protection.
    in_training_mode: Whether forward passes of training run in the model's training mode. sensitivity: The sensitivity of the sum
    that a step releases. groups: The number of groups of tensors, each of which is clipped separately. thresholds: The adaptive
    thresholds, None for fixed ones.
    """

    in_training_mode: bool

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]: ...
    @property
    def thresholds(self) -> Thresholds | None: ...
    @property
    def unprotected(self) -> list[str]: ...
    @property
    def sensitivity(self) -> float: ...
    @property
    def groups(self) -> int: ...

    def backward(self, losses: Losses, batch: Batch) -> object:
        """Add one physical batch to the step."""

    def step(self) -> StepReport:
        """Release the sum over the step's batches, with noise, and update the weights; also for a step without examples."""
        ...

    def before_release(self, check: Callable[[int], None]) -> None:
        """Register `check`, which is called once a step with the number of examples in the release.

        The number is over all processes and without padding. An engine calls it before the weights move.
        """

    def warnings(self) -> list[str]:
        """Return what the user should know about the steps so far."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state, see `Resumable`; those of model and optimizer are saved separately."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, before the first step."""

    def detach(self) -> None:
        """Remove every trace from model and optimizer."""

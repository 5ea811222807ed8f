"""An engine behind the protocol of all methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.batches import Losses
from dpbench.methods.protocol import StepReport


class EngineMethod:
    """An engine with its optimizer; also a pipeline's stage or a peer."""

    in_training_mode = True

    def __init__(self, handle: Handle, optimizer: Optimizer, backward: Callable[[Losses, Any], Any] | None = None) -> None:
        """Combine a handle with its optimizer.

        Args:
            backward: Replaces `handle.backward`, for a pipeline, whose stages exchange what they need.
        """
        self.handle, self.optimizer = handle, optimizer
        self.trainable, self.thresholds = handle.trainable, handle.thresholds
        self._backward = backward or handle.backward
        self._losses: list[Tensor] = []
        self._hooks: list[Any] = []

    @property
    def unprotected(self) -> list[str]:
        return list(self.handle.unprotected)

    @property
    def sensitivity(self) -> float:
        return self.handle.sensitivity

    @property
    def groups(self) -> int:
        return len(self.handle.bounds)

    def backward(self, losses: Losses, batch: Any) -> None:
        self._losses.append(self._backward(losses, batch))

    def step(self) -> StepReport:
        self.optimizer.step()
        self.optimizer.zero_grad()
        values, self._losses = self._losses, []
        details = {} if self.thresholds is None else dict(self.thresholds.last)
        return _EngineReport(values, self.handle.clipped_fraction, details)

    def before_release(self, check: Callable[[int], None]) -> None:
        """Register `check` in a hook after the engine's, when the examples of all processes are known and no weight has moved."""
        hook = self.optimizer.register_step_pre_hook(lambda *_: check(self.handle.counted().examples))
        self._hooks.append(hook)

    def warnings(self) -> list[str]:
        ignored = self.handle.non_finite_examples
        return [f"{ignored} examples had non-finite gradients and contributed 0"] if ignored else []

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.handle.detach()


class _EngineReport(StepReport):
    """A report that reads the losses only when they are requested: a step without a report does not wait for the device."""

    def __init__(self, values: list[Tensor], clipped_fraction: float | None, details: dict[str, Any]) -> None:
        self._values = values
        self.examples = sum(len(part) for part in values)
        self.clipped_fraction, self.details = clipped_fraction, details

    @property
    def loss(self) -> float | None:  # type: ignore[override]
        total = sum(float(part.double().sum()) for part in self._values)
        mean = total / self.examples if self.examples else None
        return mean if mean == mean else None

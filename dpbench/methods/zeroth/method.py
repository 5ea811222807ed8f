"""A zeroth-order method behind the protocol of all methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from dpbench.errors import DpbenchError
from dpbench.methods.engines.batches import Batch, Losses
from dpbench.methods.engines.thresholds import Thresholds
from dpbench.methods.protocol import StepReport
from dpbench.methods.zeroth.directions import Kind
from dpbench.methods.zeroth.trainer import SILENT, ZerothOrder
from dpbench.plugins import Plugin
from dpbench.privacy.mechanism import Mechanism


class ZerothMethod:
    """A zeroth-order method. It keeps physical batches until the step, which makes both forward passes of all of them.

    The learning rate is the optimizer's. Its `step` changes nothing, as there are no gradients, but schedules and hooks see it
    like any other.
    """

    in_training_mode = False
    thresholds: Thresholds | None = None
    unprotected: list[str] = []  # noqa: RUF012 (always empty: a step releases one number, or noise in each weight)

    def __init__(
        self, plugin: Plugin, model: nn.Module, optimizer: Optimizer, mechanism: Mechanism, perturbation: float, directions: Kind
    ) -> None:
        """Attach `plugin` to the model.

        Raises:
            DpbenchError: As in `ZerothOrder`, or the optimizer is not plain SGD with one learning rate.
        """
        self.optimizer = optimizer
        rate = self._learning_rate(plugin.name)
        published = plugin.kind == "published_zeroth"
        self.order = ZerothOrder(plugin.name, model, mechanism, rate, perturbation, directions, published=published)
        self.trainable = self.order.trainable
        self.sensitivity, self.groups = mechanism.sensitivity, 1 if mechanism.private else 0
        self._batches: list[Any] = []
        self._losses: Losses | None = None
        self._checks: list[Callable[[int], None]] = []

    def _learning_rate(self, name: str) -> float:
        groups = self.optimizer.param_groups
        plain = type(self.optimizer) is SGD and not any(g["momentum"] or g["weight_decay"] or g["maximize"] for g in groups)
        if not plain or len({float(group["lr"]) for group in groups}) != 1:
            raise DpbenchError(
                f"{name} moves all weights along one direction, which {type(self.optimizer).__name__} as it is set up does not",
                "give torch.optim.SGD with one learning rate, without momentum and weight decay",
            )
        return float(groups[0]["lr"])

    def backward(self, losses: Losses, batch: Batch) -> None:
        if self._losses is not None and self._losses != losses:
            raise DpbenchError("the physical batches of a step have different losses", "give all of a step the same function")
        self._losses = losses
        self._batches.append(batch)

    def step(self) -> StepReport:
        batches, losses = self._batches, self._losses
        self._batches, self._losses = [], None
        self.order.rate = float(self.optimizer.param_groups[0]["lr"])
        step = self.order.step(losses or _no_losses, batches)
        for check in self._checks:
            check(step.count)
        self.optimizer.step()
        return StepReport(step.count, step.loss, step.clipped, {"slope": step.slope})

    def before_release(self, check: Callable[[int], None]) -> None:
        """Register `check`, which is called after the step: the step itself moves the weights."""
        self._checks.append(check)

    def warnings(self) -> list[str]:
        ignored, silent = self.order.non_finite_examples, self.order.longest_silence
        messages = [f"{ignored} examples had losses that are not finite and contributed 0"] if ignored else []
        if silent >= SILENT:  # mezo has stopped; whether a private run does must not depend on losses
            messages.append(
                f"no example's loss moved in {silent} steps one after another: the perturbation is lost in weights or losses"
            )
        return messages

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `ZerothOrder` does.

        Raises:
            DpbenchError: It is called in the middle of a step.
        """
        if self._batches:
            raise DpbenchError("the state in the middle of a step: its batches are not kept", "save after method.step()")
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.load_state_dict(state)

    def detach(self) -> None:
        """Forget the batches and checks; nothing is attached to the model."""
        self._batches, self._checks = [], []


def _no_losses(model: nn.Module, batch: Batch) -> Batch:
    raise AssertionError("a step without batches asks for no losses")

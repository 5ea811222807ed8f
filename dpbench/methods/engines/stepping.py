"""A call of `optimizer.step`: closures, scalers of mixed precision, and the report of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpbench.errors import DpbenchError
from dpbench.methods.protocol import StepReport

Arguments = tuple[Any, ...]
Options = dict[str, Any]


def after_closure(args: Arguments, kwargs: Options) -> tuple[Arguments, Options]:
    """Run the closure of a step once, and return the arguments with one that returns the same value.

    torch would run it inside the step, after the gradients have been released: the examples of a `backward` in it would wait for
    the next step, and those of the last step would be lost.

    Args:
        args: The arguments of `step`, the optimizer first.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return args, kwargs
    with torch.enable_grad():
        value = closure()
    return (args[0], lambda: value, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}


def check_unscaled(optimizer: torch.optim.Optimizer) -> None:
    """Refuse a step that a GradScaler makes.

    Raises:
        DpbenchError: The losses were scaled.
    """
    if getattr(optimizer, "grad_scale", None) is not None:
        raise DpbenchError(
            "a GradScaler steps this optimizer: losses that it scales would be clipped in its units",
            "leave the scaler out and call optimizer.step(): norms and sums are kept in float32",
        )


class Report(StepReport):
    """A report that reads the losses only when they are requested: a step without a report does not wait for the device."""

    def __init__(self, losses: list[Tensor], clipped_fraction: float | None, details: dict[str, Any]) -> None:
        self._losses = losses
        self.examples = sum(len(part) for part in losses)
        self.clipped_fraction, self.details = clipped_fraction, details

    @property
    def loss(self) -> float | None:  # type: ignore[override]
        total = sum(float(part.double().sum()) for part in self._losses)
        mean = total / self.examples if self.examples else None
        return mean if mean == mean else None

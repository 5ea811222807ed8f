"""The special cases of a call of `optimizer.step`: closures, and scalers of mixed precision."""

from __future__ import annotations

from typing import Any

import torch

from dpbench.errors import DpbenchError

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

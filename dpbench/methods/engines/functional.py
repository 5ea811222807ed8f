"""The losses as a function of parameters and one example, and one example's gradient by plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.methods.engines.batches import Batch, Losses, check_losses

Parameters = dict[str, Tensor]

_TOLERANCES = {torch.float64: 1e-7, torch.float32: 5e-3}
_TOLERANCE_OF_HALVES = 0.1


class _LossesOf(nn.Module):
    """The losses as a module around the model, so that `functional_call` replaces its tensors wherever the losses use them."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Batch) -> Tensor:
        return check_losses(self._losses(self.model, batch))


def losses_with(model: nn.Module, losses: Losses, parameters: Parameters, batch: Batch, by_use: bool) -> Tensor:
    """Return the losses [B] with other tensors in place of the model's parameters.

    Args:
        by_use: Whether `parameters` has a tensor for every use of a tied one, by the names of `uses`; if not, it has one for all
            its uses.
    """
    if not by_use:  # the tying of `functional_call` leaves a module that is registered twice with the other tensors
        by_id = {id(p): parameters[name] for name, p in model.named_parameters() if name in parameters}
        parameters = {name: by_id[id(p)] for name, p in uses(model).items() if id(p) in by_id}
    named = {f"model.{name}": value for name, value in parameters.items()}
    return torch.func.functional_call(_LossesOf(model, losses), named, (batch,), tie_weights=False)


def uses(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameter of every use by name; one tied between modules has several names.

    A module that is registered twice has one name here: with two, `functional_call` would leave its tensors in the model.
    """
    by_module = ((path, module._parameters.items()) for path, module in model.named_modules())
    named = ((f"{path}.{name}" if path else name, p) for path, parameters in by_module for name, p in parameters)
    return {name: p for name, p in named if p is not None and p.requires_grad}


def gradients_of_one(
    model: nn.Module, losses: Losses, example: Batch, parameters: Iterable[nn.Parameter]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the detached loss [1] and id(parameter) -> gradient of a batch of one example, by a plain backward pass.

    A parameter that the loss does not depend on has no gradient here. `grad` of the parameters is unchanged.
    """
    tensors = list(parameters)
    before = [p.grad for p in tensors]
    for parameter in tensors:
        parameter.grad = None
    try:
        with torch.enable_grad():
            value = check_losses(losses(model, example))
            if value.requires_grad:
                value.sum().backward()
        return value.detach(), {id(p): _dense(p.grad) for p in tensors if p.grad is not None}
    finally:
        for parameter, gradient in zip(tensors, before, strict=True):
            parameter.grad = gradient


def gradients_by_use(model: nn.Module, losses: Losses, example: Batch) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the detached loss [1] of one example and, separately for the uses of a tied tensor, name -> gradient or None."""
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in uses(model).items()}
    try:
        value = losses_with(model, losses, dict(parameters), example, by_use=True)
        gradients = torch.autograd.grad(value.sum(), list(parameters.values()), allow_unused=True) if value.requires_grad else ()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DpbenchError(f"torch.func cannot trace the model: {why}", "use the engine 'loop' (with tied: sum)") from error
    if not gradients:
        return value.detach(), dict.fromkeys(parameters)
    return value.detach(), {n: None if g is None else _dense(g) for n, g in zip(parameters, gradients, strict=True)}


def _dense(gradient: Tensor) -> Tensor:
    """Return a dense gradient from one that may be sparse, as that of `nn.Embedding(sparse=True)`."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Return how far two computations of the same gradient may differ, relative to its norm.

    Another order of summation, or half-precision products, make less of a difference; a missed use of a tensor makes more.
    """
    return _TOLERANCES.get(dtype, _TOLERANCE_OF_HALVES)


def check_uses_seen(
    model: nn.Module, losses: Losses, example: Batch, parameters: Mapping[str, nn.Parameter], rewind: Callable[[], None]
) -> set[int]:
    """Check that a loss has the same gradients with other tensors in place of the parameters.

    Args:
        example: A batch of one example.
        rewind: Returns random streams to their current state.

    Returns:
        The ids of the parameters that the loss depends on.

    Raises:
        DpbenchError: A parameter is used in a way that no replacement reaches, such as by a closure. The message names it.
    """
    _, plain = gradients_of_one(model, losses, example, parameters.values())
    rewind()
    _, by_use = gradients_by_use(model, losses, example)
    replaced: dict[int, Tensor] = {}
    for name, parameter in uses(model).items():
        gradient = by_use[name]
        if gradient is not None:
            replaced[id(parameter)] = replaced[id(parameter)] + gradient if id(parameter) in replaced else gradient
    for name, parameter in parameters.items():
        expected, seen = plain.get(id(parameter)), replaced.get(id(parameter))
        if expected is None or not expected.isfinite().all():
            continue
        difference = float((expected - seen).norm()) if seen is not None else float(expected.norm())
        if difference > rounding_tolerance(expected.dtype) * float(expected.norm()):
            raise DpbenchError(
                f"{name} is used in a way that torch.func does not reach, such as by a closure or an attribute of the losses",
                "reach it through the model that the losses receive, or use the engine 'loop'",
            )
    return set(plain)

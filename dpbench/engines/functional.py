"""The losses as a function of parameters and one example, for engines built on `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dpbench.engines.base import Losses, check_losses

Parameters = dict[str, Tensor]


class Stand:
    """The model with other tensors in place of its parameters. apart: every use of a tied tensor is given its own."""

    def __init__(self, model: nn.Module, parameters: Parameters, apart: bool) -> None:
        self._model, self._parameters, self._apart = model, parameters, apart

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self._model, self._parameters, args, kwargs, tie_weights=not self._apart)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def uses(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name of every use -> the trainable parameter; one tied between modules has several names.

    A module that is registered twice has one name here: `functional_call` given two would leave the model with its tensors.
    """
    own = ((path, module._parameters.items()) for path, module in model.named_modules())
    named = ((f"{path}.{name}" if path else name, p) for path, parameters in own for name, p in parameters)
    return {name: p for name, p in named if p is not None and p.requires_grad}


def loss_of_one(model: nn.Module, losses: Losses, apart: bool) -> Callable[[Parameters, Any], Tensor]:
    """(parameters, an example without its batch dimension) -> its loss, a scalar; `apart` as in `Stand`."""

    def one(parameters: Parameters, example: Any) -> Tensor:
        batch = tree_map(lambda v: v[None] if isinstance(v, Tensor) else v, example)
        return check_losses(losses(Stand(model, parameters, apart), batch)).squeeze(0)  # type: ignore[arg-type]

    return one


def batch_dimensions(batch: Any) -> Any:
    """`in_dims` of a batch: 0 for its tensors, None for what is no tensor."""
    return tree_map(lambda v: 0 if isinstance(v, Tensor) else None, batch)

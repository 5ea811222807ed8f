"""Building modules with random weights that depend only on a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import nn

M = TypeVar("M", bound=torch.nn.Module)

_NO_VALUES: dict[str, Any] = {
    name: lambda tensor, *_, **__: tensor for name in dir(nn.init) if name.endswith("_") and name[0] != "_"
}
"""Initialisers that do nothing, for tensors without values: the real ones take most of the time on the meta device."""


def build(make: Callable[[], M], seed: int, meta: bool) -> M:
    """Return `make()`, built on the CPU with torch's generator at `seed`, or on the meta device without storage.

    Guarantee: torch's global generator is restored afterwards.
    """
    if meta:
        with torch.device("meta"), mock.patch.multiple(nn.init, **_NO_VALUES):
            return make()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that reseeds accelerators too
        return make()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Move the parameters of modules that are built inside the block to the meta device; buffers are not affected."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def materialise(module: nn.Module, device: torch.device, seed: int) -> None:
    """Allocate the parameters of a module on the meta device, or this rank's shards of them, on `device`, in place.

    Matrices are drawn from N(0, 0.02^2), as GPT-2's; vectors called weight are 1, other vectors 0.
    """
    module._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            if parameter.dim() > 1:
                local.normal_(0.0, 0.02, generator=generator)
            else:
                local.fill_(1.0 if name.endswith("weight") else 0.0)

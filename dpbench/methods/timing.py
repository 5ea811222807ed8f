"""The facts about a method that timings and simulations need, which step it without training anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods.registry import kind_of
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from dpbench.methods.protocol import Method

_ZEROTH_RATE = 1e-7  # the weights hardly move, whatever is released


def plugins_of(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return kind and name of all plug-ins that the numbers of these methods depend on."""
    return tuple((kind, name) for name in names if (kind := kind_of(name)) != "inference")


def missing(name: str) -> str | None:
    """Return why a peer's adapter cannot run here, or None."""
    return plugins.get("engine", name).missing if kind_of(name) == "engine" else None


def scope_of(name: str) -> str | None:
    """Return the scope that a method is timed with: the first that an engine declares; None for a method that does not clip."""
    kind = kind_of(name)
    if kind == "engine":
        scopes = plugins.get(kind, name).extra["scopes"]
        return scopes[0] if scopes else None
    return "flat" if kind == "zeroth" and plugins.get(kind, name).extra["private"] else None


def noise_of(name: str) -> Literal["gaussian", "laplace"]:
    """Return the law of a method's noise."""
    return "laplace" if kind_of(name) == "zeroth" and plugins.get("zeroth", name).extra["noise"] == "laplace" else "gaussian"


def mechanism_of(
    batch_size: int,
    clipping: Clipping | None,
    noise_multiplier: float = 1.0,
    steps: int = 1,
    noise: Literal["gaussian", "laplace"] = "gaussian",
) -> Mechanism:
    """Return a mechanism for steps that are only timed; without `clipping` it is that of plain training.

    The batches are fixed, as a timing has no use for epsilon.
    """
    sampling = Sampling("fixed", batch_size, batch_size)
    if clipping is None:
        return Mechanism(sampling, steps)
    return Mechanism(sampling, steps, clipping, noise_multiplier, noise=noise, caveats=("a timing, no model is released",))


def optimizer_of(name: str, parameters: Sequence[nn.Parameter], optimizer: Optimizer) -> Optimizer:
    """Return the optimizer of a timed method: `optimizer` for engines, SGD with a tiny rate for a zeroth-order method."""
    import torch

    return torch.optim.SGD(parameters, lr=_ZEROTH_RATE) if kind_of(name) == "zeroth" else optimizer


def require_protected(name: str, method: Method) -> None:
    """Refuse a method that leaves trained tensors unprotected, for a dry run.

    Raises:
        DpbenchError: It does. The message names the first tensor.
    """
    if method.unprotected:
        raise DpbenchError(f"engine {name} leaves {method.unprotected[0]} unprotected")

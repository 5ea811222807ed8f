"""What a timed or simulated step is made by: an engine with its optimizer, a zeroth-order method, or inference alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dpbench import plugins
from dpbench.errors import unknown
from dpbench.mechanism import Clipping, Mechanism, Sampling

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from dpbench.engines.batches import Losses

INFERENCE = "inference"
"""Not a way to train: one forward pass of the batch, the floor of what any other needs."""

_RATE = 1e-7  # of a zeroth-order method whose steps are timed: the weights stay where they are, whatever is released


def kind_of(name: str) -> Literal["engine", "zeroth", "inference"]:
    """Whose plug-in it is.

    Raises:
        DpbenchError: neither an engine nor a zeroth-order method nor inference; names the nearest.
    """
    if name == INFERENCE:
        return "inference"
    if name in plugins.discover("engine"):
        return "engine"
    if name in plugins.discover("zeroth"):
        return "zeroth"
    raise unknown("engine", name, [INFERENCE, *plugins.discover("engine"), *plugins.discover("zeroth")])


def plugins_of(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Kind and name of all that decide numbers."""
    return tuple((kind, name) for name in names if (kind := kind_of(name)) != "inference")


def missing(name: str) -> str | None:
    """Why a peer's adapter cannot run here, or None."""
    return plugins.get("engine", name).missing if kind_of(name) == "engine" else None


def scope_of(name: str) -> str | None:
    """The scope it is measured with: an engine's first; None for what does not clip."""
    kind = kind_of(name)
    if kind == "engine":
        scopes = plugins.get(kind, name).extra["scopes"]
        return scopes[0] if scopes else None
    return "flat" if kind == "zeroth" and plugins.get(kind, name).extra["private"] else None


def of_timing(
    batch_size: int,
    clipping: Clipping | None,
    noise_multiplier: float = 1.0,
    steps: int = 1,
    noise: Literal["gaussian", "laplace"] = "gaussian",
) -> Mechanism:
    """What steps do that are only timed, without `clipping` those of plain training. The batch is fixed: a timing says nothing
    about epsilon."""
    sampling = Sampling("fixed", batch_size, batch_size)
    if clipping is None:
        return Mechanism(sampling, steps)
    return Mechanism(sampling, steps, clipping, noise_multiplier, noise=noise, caveats=("a timing, no model is released",))


def noise_of(name: str) -> Literal["gaussian", "laplace"]:
    """The law of its noise."""
    return "laplace" if kind_of(name) == "zeroth" and plugins.get("zeroth", name).extra["noise"] == "laplace" else "gaussian"


class Attached(Protocol):
    """A method on a model. unprotected: trainable parameters that would be released as they are.

    `passes`: all forward and backward passes of a logical step; `release`: noise and optimizer, where they come after.
    """

    unprotected: list[str]

    def passes(self, losses: Losses, batches: Sequence[Any]) -> None: ...
    def release(self) -> None: ...
    def detach(self) -> None: ...


def attach(name: str, model: nn.Module, optimizer: Optimizer, mechanism: Mechanism, kernels: str = "auto") -> Attached:
    """The method on the model, in place. Only engines use the optimizer and the choice of kernels.

    Raises:
        DpbenchError: as `engines.attach` and `ZerothOrder` do.
    """
    kind = kind_of(name)
    if kind == "engine":
        return _ByEngine(name, model, optimizer, mechanism, kernels)
    return _Inference(model) if kind == "inference" else _ByDirection(name, model, mechanism)


class _ByEngine:
    def __init__(self, name: str, model: nn.Module, optimizer: Optimizer, mechanism: Mechanism, kernels: str) -> None:
        from dpbench import engines

        own = kernels if engines.takes_kernels(name) else "auto"
        self.handle, self.optimizer = engines.attach(name, model, optimizer, mechanism, own), optimizer
        self.unprotected = list(self.handle.unprotected)

    def passes(self, losses: Losses, batches: Sequence[Any]) -> None:
        for batch in batches:
            self.handle.backward(losses, batch)

    def release(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def detach(self) -> None:
        self.handle.detach()


class _ByDirection:
    unprotected: list[str] = []  # noqa: RUF012 (never any: what is released of a step is one number, or noised in each weight)

    def __init__(self, name: str, model: nn.Module, mechanism: Mechanism) -> None:
        from dpbench.zeroth.trainer import ZerothOrder

        self.trainer = ZerothOrder(name, model, mechanism, _RATE)

    def passes(self, losses: Losses, batches: Sequence[Any]) -> None:
        self.trainer.step(losses, batches)

    def release(self) -> None:
        """The step has done it."""

    def detach(self) -> None:
        """Nothing hangs on the model."""


class _Inference:
    unprotected: list[str] = []  # noqa: RUF012 (nothing is released)

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def passes(self, losses: Losses, batches: Sequence[Any]) -> None:
        import torch

        with torch.inference_mode():
            for batch in batches:
                losses(self.model, batch)

    def release(self) -> None:
        """There is none."""

    def detach(self) -> None:
        """Nothing hangs on the model."""

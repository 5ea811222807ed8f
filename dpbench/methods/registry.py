"""The methods by name: their kinds, and how they are attached to a model. torch is imported only when one is attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from dpbench import plugins
from dpbench.errors import unknown
from dpbench.privacy.mechanism import Mechanism

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from dpbench.methods.engines.layers import Layout
    from dpbench.methods.protocol import Method
    from dpbench.methods.zeroth.directions import Kind

INFERENCE = "inference"
"""The name of inference, which trains nothing: one forward pass for each batch."""
KINDS = ("engine", "zeroth", "published_engine", "published_zeroth")
"""Kinds of plug-ins that are methods. The published ones reproduce a paper's code with its faults."""


def kind_of(name: str) -> Literal["engine", "zeroth", "inference"]:
    """Return the kind of a method that is not a paper's published code.

    Raises:
        DpbenchError: There is no such method. The message names the nearest.
    """
    if name == INFERENCE:
        return "inference"
    if name in plugins.discover("engine"):
        return "engine"
    if name in plugins.discover("zeroth"):
        return "zeroth"
    raise unknown("engine", name, [INFERENCE, *plugins.discover("engine"), *plugins.discover("zeroth")])


def find(name: str, kinds: Sequence[str] = KINDS) -> plugins.Plugin:
    """Return the plug-in of a method.

    Args:
        kinds: The kinds of plug-ins to search, see `KINDS`.

    Raises:
        DpbenchError: None of these kinds has it. The message names the nearest.
    """
    known = {method: plugin for kind in reversed(kinds) for method, plugin in plugins.discover(kind).items()}
    if name not in known:
        raise unknown("engine", name, known)
    return known[name]


def attach(
    name: str,
    model: nn.Module,
    optimizer: Optimizer,
    mechanism: Mechanism,
    *,
    kernels: str = "auto",
    perturbation: float = 1e-3,
    directions: Kind = "gaussian",
    globalize_layout: Callable[[Layout], Layout] | None = None,
) -> Method:
    """Attach a method to model and optimizer, in place; also a paper's published code, for rows marked `as_published` alone.

    Args:
        kernels: Which kernels one of our engines uses, see `engines.attach`. Other methods ignore it.
        perturbation, directions: Lambda of a zeroth-order method, and the law of its directions. Its learning rate is the
            optimizer's, which must be plain SGD.
        globalize_layout: See `engines.attach`.

    Guarantee: that of the mechanism, as the method keeps it. None for published code: its `epsilon()` is None, and its
    `unprotected` names the tensors that are released without protection.

    Raises:
        DpbenchError: As in `engines.attach` and `ZerothOrder`, or a zeroth-order method cannot use the optimizer.
    """
    if name == INFERENCE:
        from dpbench.methods.inference import InferenceOnly

        return InferenceOnly(model)
    plugin = find(name)
    if plugin.kind in ("zeroth", "published_zeroth"):
        from dpbench.methods.zeroth.method import ZerothMethod

        return ZerothMethod(plugin, model, optimizer, mechanism, perturbation, directions)
    if plugin.kind == "published_engine":
        published: Method = plugin.load().Engine(model, optimizer, mechanism, "torch")
        return published
    from dpbench.methods import engines

    chosen = kernels if engines.takes_kernels(name) else "auto"
    return engines.attach(name, model, optimizer, mechanism, chosen, globalize_layout)

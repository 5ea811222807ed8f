"""The engines, which bound per-example gradients. `attach` is the only entry; one file an engine, `adapters/` for peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown

if TYPE_CHECKING:
    import torch

    from dpbench.methods.engines.base import Handle
    from dpbench.methods.engines.layers import Layout
    from dpbench.privacy.mechanism import Mechanism


KERNELS = ("auto", "torch", "native", "triton")


def attach(
    name: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    mechanism: Mechanism,
    kernels: str = "auto",
    globalize_layout: Callable[[Layout], Layout] | None = None,
) -> Handle:
    """Attach engine `name` to model and optimizer, in place.

    Args:
        kernels: What forms norms and sums of layers, and on a GPU the noise. `triton` is for every layer, or an error; `native`,
            kernels in C for the CPU, is for every layer that has one, or an error; `auto` uses either where it can run;
            `torch` uses neither.
        globalize_layout: For a stage of a pipeline: maps the layout of its layers to that among the groups of the full model.

    Raises:
        DpbenchError: The engine is unknown, does not do the clipping or cannot protect a parameter (named), or a layer (named),
            device or engine does not have the kernels.
    """
    plugin = plugins.get("engine", name)
    if kernels not in KERNELS:
        raise unknown("choice of kernels", kernels, KERNELS)
    if kernels in ("native", "triton") and not takes_kernels(name):
        others = ", ".join(n for n in plugins.discover("engine") if takes_kernels(n))
        raise DpbenchError(
            f"engine {name!r} does not use kernels of ours, and so no {kernels} ones", f"leave kernels out, or use {others}"
        )
    return plugin.load().Engine(model, optimizer, mechanism, kernels, globalize_layout)


def takes_kernels(name: str) -> bool:
    """Return whether an engine's layers are served by `dpbench.kernels`, so that there is a choice."""
    return bool(plugins.get("engine", name).extra.get("kernels"))

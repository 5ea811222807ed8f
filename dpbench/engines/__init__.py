"""How per-example gradients get bounded. `attach` is the one entry; one file an engine, `adapters/` for peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import plugins

if TYPE_CHECKING:
    import torch

    from dpbench.engines.base import Handle
    from dpbench.mechanism import Mechanism


def attach(name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, mechanism: Mechanism) -> Handle:
    """Attach engine `name` to model and optimizer, in place.

    Raises:
        DpbenchError: unknown engine, a clipping it does not do, a parameter it cannot protect (named).
    """
    return plugins.get("engine", name).load().Engine(model, optimizer, mechanism)


def attach_published(name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, mechanism: Mechanism) -> Handle:
    """Attach what a paper's published code does, faults included, for rows marked `as_published` alone.

    Guarantee: none. Its `epsilon()` is None and its `unprotected` names the tensors that are released as they are.

    Raises:
        DpbenchError: unknown engine, a clipping it does not do.
    """
    return plugins.get("published_engine", name).load().Engine(model, optimizer, mechanism)

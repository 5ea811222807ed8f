"""Engines on several processes: replicas of a model, shards of it, or stages of a pipeline.

`attach` is `engines.attach` for a group: each rank calls `handle.backward` on its share of the logical batch, which may be
empty, and all ranks step the optimizer; what they release has one draw of noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import engines, plugins
from dpbench.errors import DpbenchError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from dpbench.engines.base import Handle
    from dpbench.mechanism import Mechanism


def attach(
    name: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    mechanism: Mechanism,
    group: dist.ProcessGroup | None = None,
) -> Handle:
    """Attach engine `name` on every rank of a group (None: all processes), in place.

    Every rank has the whole model, and gets rank 0's weights. `expected_batch_size` is that of the logical batch.

    Raises:
        DpbenchError: on all ranks: an engine that runs in one process only, or a mechanism, parameter list, optimizer or engine
            that is not the same on all ranks.
    """
    from dpbench.engines.noise import Noise
    from dpbench.parallel.group import Group, facts_of
    from dpbench.parallel.replicas import Replicas, broadcast

    members = Group(group)
    require(name, "replicas")
    members.agree(**facts_of(model, optimizer, mechanism, name))
    handle = engines.attach(name, model, optimizer, mechanism)
    broadcast(model, members)
    handle.exchange = Replicas(members)
    handle.noise = Noise(mechanism, members.rank)
    return handle


def require(name: str, how: str) -> None:
    """Stop unless engine `name` declares that it runs this way.

    Raises:
        DpbenchError: it does not; names those that do.
    """
    if how not in plugins.get("engine", name).extra.get("parallel", ()):
        able = [other for other, plugin in plugins.discover("engine").items() if how in plugin.extra.get("parallel", ())]
        raise DpbenchError(f"engine {name!r} does not run as {how} on several processes", f"these do: {', '.join(able)}")

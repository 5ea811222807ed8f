"""Engines on several processes: replicas of a model, shards of it, or stages of a pipeline.

`attach` is `methods.attach` for a group: each rank calls `method.backward` on its share of the logical batch, which may be
empty, and all ranks step the optimizer; what they release has one draw of noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from dpbench.distributed.stages import Inputs, Pipeline, Schedule
    from dpbench.methods.engines.base import Handle
    from dpbench.privacy.mechanism import Clipping, Mechanism


def attach(
    name: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    mechanism: Mechanism,
    group: dist.ProcessGroup | None = None,
    kernels: str = "auto",
) -> Handle:
    """Attach engine `name` on every rank of a group (None: all processes), in place.

    Either every rank has the full model and gets rank 0's weights, or the model has been through torch's `fully_shard`. Then all
    ranks call `method.backward` equally often (`deal.padded`). `expected_batch_size` is that of the logical batch.

    Raises:
        DpbenchError: On all ranks: the engine runs in one process only, a parameter is not sharded like the others, or the
            mechanism, parameter list, optimizer or engine is not the same on all ranks.
    """
    from dpbench.distributed.group import Group, facts_of
    from dpbench.distributed.replicas import Replicas, broadcast
    from dpbench.distributed.shards import Shards, check_layers, check_shards, is_sharded

    members = Group(group)
    sharded = is_sharded(model)
    require(name, "shards" if sharded else "replicas")
    members.agree(**facts_of(model, optimizer, mechanism, name))
    if sharded:
        check_shards(model, members)
    handle = engines.attach(name, model, optimizer, mechanism, kernels)
    if sharded:
        try:
            check_layers(handle)
        except DpbenchError:
            handle.detach()
            raise
        handle.exchange = Shards(members)
    else:
        broadcast(model, members)
        handle.exchange = Replicas(members)
    handle.draw_noise_as(members.rank)
    return handle


def attach_stage(
    name: str,
    stage: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    mechanism: Mechanism,
    micro_batches: int,
    schedule: Schedule = "gpipe",
    group: dist.ProcessGroup | None = None,
    inputs: Inputs | None = None,
    kernels: str = "auto",
) -> Pipeline:
    """Attach engine `name` to this rank's stage of a pipeline, in place; stages are in the order of ranks.

    Args:
        stage: Takes the output [b, ...] of the stage before it and returns one tensor [b, ...]. The last stage returns what
            `losses` expects of the model. Parameter names differ between stages (`models.stages.stage_of` gives such stages).
        inputs: Maps a batch to the inputs of the first stage. By default they are those of a language model.

    Raises:
        DpbenchError: On all ranks: the engine or scope cannot be split, there are too few micro-batches, a parameter is in two
            stages, or the mechanism, optimizer or engine is not the same on all ranks.
    """
    from dpbench.distributed.group import Group, facts_of_training
    from dpbench.distributed.stages import Pipeline, Stages, global_layout, input_ids
    from dpbench.methods.engines.layers import Layout

    members = Group(group)
    require(name, "stages")
    if mechanism.clipping is not None:
        _check_clipping(mechanism.clipping, members.size)
    if micro_batches < (members.size if schedule == "1f1b" else 1):
        raise DpbenchError(f"{micro_batches} micro-batches for {members.size} stages", "use as many as stages, or more")
    facts = facts_of_training(optimizer, mechanism, name)
    members.agree(**facts, schedule=[schedule, micro_batches])
    names = [n for n, _ in stage.named_parameters()]
    spans = mechanism.clipping is not None and bool(plugins.get("scope", mechanism.clipping.scope).extra.get("spans_stages"))
    handle = engines.attach(
        name, stage, optimizer, mechanism, kernels, lambda local_layout: global_layout(local_layout, names, members, spans)
    )
    if handle.layout is None:  # plain training has no groups, but the names are checked all the same
        global_layout(Layout([], [], []), names, members)
    handle.exchange = Stages(members, norms_wait=spans)
    handle.draw_noise_as(members.rank)
    return Pipeline(handle, members, schedule, micro_batches, inputs or input_ids)


def _check_clipping(clipping: Clipping, stages: int) -> None:
    """Stop unless each group of the clipping is inside one stage, or its norms can be exchanged.

    Raises:
        DpbenchError: The scope allows neither, one group over all stages has an adaptive threshold, or the number of devices is
            not that of the stages.
    """
    scopes = {name: plugin.extra for name, plugin in plugins.discover("scope").items()}
    if not scopes[clipping.scope].get("stages"):
        able = [name for name, extra in scopes.items() if extra.get("stages")]
        raise DpbenchError(f"{clipping.scope} clipping does not run in a pipeline", f"these scopes do: {', '.join(able)}")
    if scopes[clipping.scope].get("spans_stages") and clipping.adaptive is not None:
        raise DpbenchError(
            f"an adaptive threshold with {clipping.scope} clipping in a pipeline: every stage would count the same examples",
            "leave adaptive out, or use a scope whose groups are each inside one stage",
        )
    if clipping.devices not in (None, stages):
        raise DpbenchError(f"{clipping.devices} devices in a pipeline of {stages} stages", "leave devices out: each stage is one")


def require(name: str, how: str) -> None:
    """Stop unless engine `name` declares that it runs this way.

    Raises:
        DpbenchError: It does not. The message names the engines that do.
    """
    if how not in plugins.get("engine", name).extra.get("parallel", ()):
        able = [other for other, plugin in plugins.discover("engine").items() if how in plugin.extra.get("parallel", ())]
        raise DpbenchError(f"engine {name!r} does not run as {how} on several processes", f"these do: {', '.join(able)}")

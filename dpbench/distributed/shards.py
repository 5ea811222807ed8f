"""Fully sharded data parallel (torch's `fully_shard`): every rank keeps a part of each tensor and a share of the logical batch.

torch gathers a block's weights before its forward and its backward pass and frees them after it, as in plain training. An
engine asks autograd for the layers' output gradients only, so torch has no weight gradients to reduce. Instead a layer's bounded
sum is reduced to the ranks' shards as soon as the physical batch adds nothing more to it, and freed.

Sensitivity: as for replicas. The sum over ranks is that over the logical batch, in shards. Each rank adds noise to its shards
alone, from a separate stream, so all ranks together add one draw of the mechanism's noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from dpbench.distributed.group import Group, Grouped
from dpbench.errors import DpbenchError
from dpbench.kernels.fallback.cpu import FallbackLeaf
from dpbench.kernels.leaf import accumulation_dtype
from dpbench.methods.engines.attached import Attached
from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.exchange import Tally
from dpbench.methods.engines.layers import Layer

_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its name from torch 2.13 on


class Shards(Grouped):
    """The exchange of shards: every rank runs equally many physical batches, with padding (`real=0`) after its share."""

    keeps_padding = True

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._rooms: dict[int, Tensor] = {}
        self._shards: dict[int, Tensor] = {}

    def new_sum(self, parameter: Tensor) -> Tensor:
        """Return memory for the full sum. Padding rows follow it, so that all ranks' shards have one length."""
        rows = -(-parameter.shape[0] // self.group.size) * self.group.size
        dtype = accumulation_dtype(parameter)
        room = torch.empty((rows, *parameter.shape[1:]), dtype=dtype, device=_local(parameter).device)
        room[parameter.shape[0] :].zero_()
        self._rooms[id(parameter)] = room
        return room[: parameter.shape[0]]

    def finished(self, handle: Attached, layers: Sequence[Layer]) -> None:
        for layer in layers:
            for parameter in layer.parameters.values():
                if id(parameter) in self._rooms:
                    handle.pop_sum(parameter)
                    self._reduce(parameter, self._rooms.pop(id(parameter)))

    def _reduce(self, parameter: Tensor, room: Tensor) -> None:
        """Add the sum over all ranks to this rank's shard: rows [rank x n, rank x n + n) of the padded sum."""
        shard = room.new_empty((room.shape[0] // self.group.size, *room.shape[1:]))
        _reduce_scatter(shard, room, group=self.group.process_group)
        shard = shard[: _local(parameter).shape[0]]
        if id(parameter) in self._shards:
            self._shards[id(parameter)].add_(shard)
        else:
            self._shards[id(parameter)] = shard

    def total(self, tally: Tally, steps: int, fault: DpbenchError | None) -> Tally:
        return self.group.total(tally, fault, steps=steps)

    def summed(self, handle: Attached, parameter: Tensor) -> Tensor:
        """Return this rank's shard of the sum, which torch forms in plain training and this class otherwise."""
        running_sum = handle.pop_sum(parameter)
        if isinstance(running_sum, DTensor):
            return running_sum.to_local().mul_(self.group.size)  # torch averages over ranks
        if id(parameter) in self._shards:
            return self._shards.pop(id(parameter))
        return torch.zeros_like(_local(parameter), dtype=accumulation_dtype(parameter))

    def release_(self, handle: Attached, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Replace each rank's shard by its part of (sum + N(0, std^2)) / divisor, in place.

        Guarantee: shards do not overlap, so every element gets one draw of noise, from the rank that keeps it.
        """
        handle.noise.release_([(shard, std) for shard, std in sums if shard.numel()], divisor)

    def gradient(self, parameter: Tensor, released: Tensor) -> Tensor:
        assert isinstance(parameter, DTensor)
        return DTensor.from_local(
            released.to(parameter.dtype),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def is_sharded(model: nn.Module) -> bool:
    """Return whether `fully_shard` has been applied."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def check_shards(model: nn.Module, group: Group) -> None:
    """Check that every parameter is sharded by rows over all ranks of the group.

    Raises:
        DpbenchError: One is not. The message names the first.
    """
    for name, parameter in model.named_parameters():
        value: object = parameter
        mesh = value.device_mesh if isinstance(value, DTensor) and value.placements == (Shard(0),) else None
        if mesh is None or mesh.ndim != 1 or mesh.size() != group.size:
            raise DpbenchError(
                f"{name} is not sharded by rows over all {group.size} ranks", "apply fully_shard to the whole model"
            )


def check_layers(handle: Handle) -> None:
    """Check that every layer's gradients are formed without its weights, which are sharded again by then.

    Raises:
        DpbenchError: A layer has no kernel, or layers are tied. The message names them.
    """
    for cluster in handle.layout.clusters if handle.layout is not None else []:
        if len(cluster.layers) > 1:
            raise DpbenchError(f"{cluster.name} share a tensor: its shards would be two", "untie them, or use replicas")
        if isinstance(cluster.layers[0].leaf, FallbackLeaf):
            kind = type(cluster.layers[0].module).__name__
            raise DpbenchError(
                f"{cluster.name} ({kind}) has no kernel, so its gradient needs its weights", "freeze it, or use replicas"
            )


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter

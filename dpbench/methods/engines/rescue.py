"""The rescue of examples whose computed norm is useless, as its square is outside of float32 though the gradient is not.

Squares of gradients above 1e19 overflow, and those below 1e-19 vanish. An engine leaves the first out as if they were not finite,
and a function that scales every gradient to the bound (AUTO-V) leaves the second unscaled. Both are rare; they are clipped
again here by plain autograd, one example at a time, with norms in float64.

Whether there are any is known once the device has computed the norms. Nothing waits for it: physical batches are kept until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dpbench.kernels.leaf import Factor
from dpbench.methods.engines.batches import Batch, Losses, select, versions_of
from dpbench.methods.engines.functional import gradients_of_one
from dpbench.methods.engines.probes import RandomStreams

if TYPE_CHECKING:
    from dpbench.methods.engines.attached import Attached

_VANISHING = 1e-18
"""Norms below have squares that lose digits in float32."""

_AHEAD = 2  # physical batches whose norms may still be outstanding when the next one begins


@dataclass
class Norms:
    """Norms [B, K] of the examples of one physical batch in some groups (None: all), with the groups' bounds."""

    norms: Tensor
    bounds: Tensor | float
    groups: Sequence[int] | None


class Doubts:
    """The norms of the last physical batches, some of which may be useless.

    small: Whether small norms are useless too (`scales_all`).
    """

    def __init__(self, handle: Attached) -> None:
        self.small = False
        self._handle = handle
        self._waiting: deque[_Doubt] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def clear(self) -> None:
        self._waiting.clear()

    def add(self, losses: Losses, batch: Batch, noted: list[Norms]) -> None:
        """Note the norms of one physical batch."""
        self._waiting.append(_Doubt(self._handle, losses, batch, noted, self.small))

    def settled(self, wait: bool = False) -> Iterator[Norms]:
        """Yield the norms of physical batches that the device has finished, after adding what was missing in their sums.

        Args:
            wait: Whether to wait for all of them.
        """
        while self._waiting and (wait or not self._waiting[-1].on_its_way or len(self._waiting) > _AHEAD):
            yield from self._waiting.popleft().settled()


class _Doubt:
    """The norms of one physical batch. on_its_way: Whether the device may not have computed them yet."""

    def __init__(self, handle: Attached, losses: Losses, batch: Batch, noted: list[Norms], small: bool) -> None:
        self._handle, self._losses, self._batch, self._noted = handle, losses, batch, noted
        self._versions = versions_of(batch)
        self._doubtful = [~torch.isfinite(entry.norms) | (entry.norms < (_VANISHING if small else 0.0)) for entry in noted]
        self._any = torch.stack([doubtful.any() for doubtful in self._doubtful]).any()
        self._copied: torch.cuda.Event | None = None
        self.on_its_way = self._any.is_cuda
        if self._any.is_cuda:  # only its reader waits, and for no operation that began later
            on_device, self._any = self._any, torch.empty((), dtype=torch.bool, pin_memory=True)
            self._any.copy_(on_device, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(on_device.device))

    def settled(self) -> list[Norms]:
        """Add the clipped gradients of the examples with useless norms, and return the norms, corrected for them.

        If the batch was changed in place since, these examples stay left out.

        Guarantee: an example that is added here has added nothing to the same group before, and adds at most the group's bound.
        """
        if self._copied is not None:
            self._copied.synchronize()
        if not self._any or versions_of(self._batch) != self._versions:
            return self._noted
        with self._handle.guard.state:
            return [self._rescued(entry, doubtful) for entry, doubtful in zip(self._noted, self._doubtful, strict=True)]

    def _rescued(self, noted: Norms, doubtful: Tensor) -> Norms:
        handle = self._handle
        norms = noted.norms.double()
        groups = range(norms.shape[1]) if noted.groups is None else noted.groups
        members, streams = group_members(handle), RandomStreams(handle.model)
        for index in doubtful.any(1).nonzero()[:, 0].tolist():
            example = select(self._batch, slice(index, index + 1))
            _, total = gradients_of_one(handle.model, self._losses, example, handle.trainable.values())
            for column, group in enumerate(groups):
                if not doubtful[index, column]:
                    continue
                parts = [(parameter, total[id(parameter)]) for parameter in members[group] if id(parameter) in total]
                if not parts:
                    continue
                norm = torch.stack([g.double().square().sum() for _, g in parts]).sum().sqrt()
                if not torch.isfinite(norm) or (norm == 0 and noted.norms[index, column] == 0):
                    continue
                factor = handle.factor(group)(norm.reshape(1))[0]
                for parameter, gradient in parts:
                    handle.sum_of(parameter).add_(gradient.double() * factor)
                norms[index, column] = norm
        streams.rewind()  # as if no example had been computed twice
        return Norms(norms, noted.bounds, noted.groups)


def scales_all(factor: Factor) -> bool:
    """Return whether the clipping function brings even the smallest gradient to the bound."""
    smallest = torch.tensor([_VANISHING / 100], dtype=torch.float64)
    return bool((factor(smallest) * smallest > 1e-6 * factor.bound).all())


def group_members(handle: Attached) -> dict[int, list[nn.Parameter]]:
    """Return the parameters of each group, each once."""
    if handle.layout is None:
        return {0: list(handle.trainable.values())}
    members: dict[int, dict[int, nn.Parameter]] = {}
    for cluster in handle.layout.clusters:
        for layer in cluster.layers:
            members.setdefault(cluster.group, {}).update({id(p): p for p in layer.parameters.values()})
    return {group: list(parameters.values()) for group, parameters in members.items()}

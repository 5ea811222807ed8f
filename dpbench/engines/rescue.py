"""Examples whose norm says nothing: its square is beyond float32, though the gradient itself is not.

Squares of gradients above 1e19 overflow, and those below 1e-19 vanish. An engine leaves the first out as if they were not finite,
and a function that scales every gradient to the bound (AUTO-V) leaves the second where they are. Both are rare; they are clipped
again here by plain autograd, one example at a time, with norms in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpbench.engines.batches import Losses, select
from dpbench.engines.functional import gradients_of_one
from dpbench.engines.probes import RandomStreams

if TYPE_CHECKING:
    from dpbench.engines.base import Handle

_VANISHING = 1e-18
"""Norms below have squares that lose digits in float32."""


@dataclass
class Norms:
    """Norms [B, K] of the examples of one physical batch in some groups (None: all), with the groups' bounds."""

    norms: Tensor
    bounds: Tensor | float
    groups: Sequence[int] | None


def rescued(handle: Handle, losses: Losses, batch: Any, noted: Norms) -> Norms:
    """Add what the examples whose norms say nothing should have added, and return the norms with theirs in place.

    Guarantee: an example that is added here has added nothing to the same group before, and adds at most the group's bound.
    """
    clipping = handle.mechanism.clipping
    if clipping is None or clipping.tied == "per_use":
        return noted
    doubtful = ~torch.isfinite(noted.norms)
    if scales_all(handle):
        doubtful |= noted.norms < _VANISHING
    if not doubtful.any():
        return noted
    norms = noted.norms.double()
    groups = range(norms.shape[1]) if noted.groups is None else noted.groups
    members, streams = group_members(handle), RandomStreams(handle.model)
    for index in doubtful.any(1).nonzero()[:, 0].tolist():
        example = select(batch, slice(index, index + 1))
        _, total = gradients_of_one(handle.model, losses, example, handle.trainable.values())
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
    streams.rewind()  # as if no example had been looked at twice
    return Norms(norms, noted.bounds, noted.groups)


def scales_all(handle: Handle) -> bool:
    """Whether the clipping function brings even the smallest gradient to the bound."""
    smallest = torch.tensor([_VANISHING / 100], dtype=torch.float64)
    factor = handle.factor(0)
    return bool((factor(smallest) * smallest > 1e-6 * factor.bound).all())


def group_members(handle: Handle) -> dict[int, list[Tensor]]:
    """Group -> its parameters, each once."""
    if handle.layout is None:
        return {0: list(handle.trainable.values())}
    members: dict[int, dict[int, Tensor]] = {}
    for cluster in handle.layout.clusters:
        for layer in cluster.layers:
            members.setdefault(cluster.group, {}).update({id(p): p for p in layer.parameters.values()})
    return {group: list(parameters.values()) for group, parameters in members.items()}

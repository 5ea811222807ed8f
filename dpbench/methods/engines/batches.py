"""Batches in any container, and their losses: the number of examples, and the selection of some by their index."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError

Batch: TypeAlias = Any
"""A tensor whose first dimension is examples, or any nest of mappings, sequences and dataclasses of such tensors."""

Losses = Callable[[nn.Module, Batch], Tensor]
"""A function losses(model, batch) -> [B]."""


def check_losses(values: Tensor) -> Tensor:
    """Return the losses [B], or raise an error that says what they must be."""
    if not isinstance(values, Tensor) or values.dim() != 1:
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise DpbenchError(
            f"losses have shape {shape}, not [B]: one value an example, computed from that example alone",
            "reduce over tokens, never over the batch",
        )
    return values


def without_padding(losses: Losses, real: int) -> Losses:
    """Return the losses with those from number `real` on at 0, so that padding has no gradient."""

    def counted(model: nn.Module, batch: Batch) -> Tensor:
        values = check_losses(losses(model, batch))
        padding = torch.arange(len(values), device=values.device) >= real
        return values.masked_fill(padding, 0.0)

    return counted


def batch_size(batch: Batch) -> int:
    """Return B of a batch: the first dimension of its first tensor that has one.

    Args:
        batch: a tensor, or a mapping (also `BatchEncoding`), sequence, named tuple, dataclass or object with tensors.

    Raises:
        DpbenchError: The batch holds no tensor with a dimension.
    """
    for tensor in _tensors(batch):
        if tensor.dim() > 0:
            return tensor.shape[0]
    raise DpbenchError(
        "the batch holds no tensor with a batch dimension", "pass a tensor, or a dict or tuple of tensors [B, ...]"
    )


def select(batch: Batch, index: Tensor | slice) -> Batch:
    """Return the examples `index` of a batch, in a container of the same kind.

    Tensors whose first dimension is B, and plain lists and tuples of B strings or numbers, are indexed; anything else (0-d
    tensors, tables that all examples share, options) is unchanged.
    """
    return _select(batch, index, batch_size(batch))


def versions_of(batch: Batch) -> list[int]:
    """Return how often each tensor of a batch has been written in place; 0 for those that do not count it."""
    return [0 if tensor.is_inference() else tensor._version for tensor in _tensors(batch)]


def _tensors(batch: Batch) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
        return
    for value in _parts(batch).values():
        yield from _tensors(value)


def _parts(batch: Batch) -> Mapping[Any, Any]:
    """Return the contents of a container by key; nothing for a value that is no container."""
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return dict(enumerate(batch))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    if hasattr(batch, "__dict__") and not isinstance(batch, type | nn.Module) and not callable(batch):
        return vars(batch)
    return {}


def _select(value: Any, index: Tensor | slice, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device) if isinstance(index, Tensor) else index] if _has_batch(value, size) else value
    parts = _parts(value)
    if not parts:
        return value
    if isinstance(value, list | tuple) and len(value) == size and all(isinstance(v, str | bytes | int | float) for v in value):
        numbers = torch.arange(size)[index.cpu() if isinstance(index, Tensor) else index].tolist()
        return type(value)([value[number] for number in numbers])
    return _rebuilt(value, {key: _select(part, index, size) for key, part in parts.items()})


def _has_batch(value: Tensor, size: int) -> bool:
    return value.dim() > 0 and value.shape[0] == size


def _rebuilt(like: Batch, parts: dict[Any, Any]) -> Any:
    """Return a container like `like` with other parts."""
    if isinstance(like, dict) and type(like) is dict:
        return parts
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*parts.values())
    if isinstance(like, list | tuple):
        return type(like)(parts.values())
    other = copy.copy(like)
    if isinstance(like, Mapping):
        if hasattr(other, "data") and isinstance(other.data, dict):  # a UserDict shares its dict with its copy
            other.data = dict(other.data)
        for key, part in parts.items():
            other[key] = part
        return other
    for name, part in parts.items():
        object.__setattr__(other, name, part)
    return other

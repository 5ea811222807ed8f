"""Batches: the same fields in whatever people hold them."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


class Named(NamedTuple):
    x: Tensor
    y: Tensor
    weight: Tensor
    mask: Tensor
    side: Tensor
    ids: Tensor
    targets: Tensor


@dataclass
class Data:
    x: Tensor
    y: Tensor
    weight: Tensor
    mask: Tensor
    side: Tensor
    ids: Tensor
    targets: Tensor


def _encoding(fields: dict[str, Tensor]) -> Any:
    from transformers import BatchEncoding

    return BatchEncoding(fields)


def _model_output(fields: dict[str, Tensor]) -> Any:
    from transformers.utils import ModelOutput

    return ModelOutput(fields)


CONTAINERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "dict": dict,
    "tuple": lambda fields: tuple(fields.values()),
    "list": lambda fields: list(fields.values()),
    "namedtuple": lambda fields: Named(**fields),
    "dataclass": lambda fields: Data(**fields),
    "dict with numbers and None": lambda fields: {"scale": 1.0, "nothing": None, **fields, "name": "words"},
    "nested": lambda fields: {"inputs": {k: fields[k] for k in ("x", "mask", "side", "ids")}, "rest": [fields[k] for k in _REST]},
    "UserDict": UserDict,
    "BatchEncoding": _encoding,
    "ModelOutput": _model_output,
}
_REST = ("y", "weight", "targets")


def fields_of(batch: Any) -> dict[str, Tensor]:
    """What `CONTAINERS` packed."""
    if isinstance(batch, dict | UserDict) and "inputs" in batch:
        return {**batch["inputs"], **dict(zip(_REST, batch["rest"], strict=True))}
    if isinstance(batch, dict | UserDict):
        return {name: batch[name] for name in Named._fields}
    if dataclasses.is_dataclass(batch):
        return {name: getattr(batch, name) for name in Named._fields}
    return dict(zip(Named._fields, batch, strict=True))

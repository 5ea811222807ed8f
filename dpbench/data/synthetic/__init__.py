"""Generated stand-ins for real datasets: deterministic, learnable, and marked synthetic wherever their numbers appear.

`stand_ins.yaml` lists them; their word lists and sentences are in the YAML file beside their module.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dpbench.errors import unknown
from dpbench.files import read_yaml


@dataclass(frozen=True)
class StandIn:
    """A stand-in.

    generator: the module and function that make its rows; version: raised when a row changes; splits: split -> number of rows.
    """

    generator: str
    version: int
    seed: int
    splits: dict[str, int]

    def generate(self, split: str) -> dict[str, list[Any]]:
        """Return the columns of a split, under canonical names."""
        module, _, function = self.generator.partition(".")
        columns: dict[str, list[Any]] = getattr(importlib.import_module(f"{__name__}.{module}"), function)(self, split)
        return columns


@cache
def contents(name: str) -> dict[str, Any]:
    """Return what `name.yaml` in this folder holds."""
    values: dict[str, Any] = read_yaml(Path(__file__).with_name(f"{name}.yaml"))
    return values


def stand_in(name: str, where: str = "") -> StandIn:
    """Return the stand-in of a name.

    Raises:
        DpbenchError: there is none; the error begins with `where` and names the nearest.
    """
    stand_ins = contents("stand_ins")
    if name not in stand_ins:
        raise unknown("stand-in", name, stand_ins, where)
    return StandIn(**stand_ins[name])

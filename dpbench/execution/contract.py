"""The interface of a job: the context that it gets and the outcome that it returns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpbench.errors import DpbenchError
from dpbench.execution.tracking import StepLog
from dpbench.files import sha256_file
from dpbench.records.schema import Metric, Privacy, Record
from dpbench.spec.models import Resources
from dpbench.spec.sources import Source

Parents = dict[str, tuple[str, dict[str, Any], int, Resources]]
"""The runs that a run reads: role -> (job, settings, seed, resources)."""


@dataclass
class Context:
    """Everything that a job may use.

    out: the run's folder, for artefacts; sources: `dataset:sst2` -> source; parents: role -> folder of the parent run;
    ids: role -> id of the parent run; report: called with (done, total, text) to show progress.
    """

    out: Path
    seed: int
    sources: dict[str, Source]
    steps: StepLog
    threads: int = 1
    parents: dict[str, Path] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    report: Callable[[int, int, str], None] = lambda done, total, text: None

    def parent(self, role: str) -> Record:
        """Return the record of a parent run.

        Raises:
            DpbenchError: the parent has not run, or its record is invalid.
        """
        from dpbench.records.store import NAME, read_record

        return read_record(self.parents[role] / NAME, self.ids.get(role))

    def artefact(self, role: str, name: str) -> Path:
        """Return a file of a parent run, unchanged since the parent's record was written.

        Raises:
            DpbenchError: the parent has not run, its record is invalid or names no such file, or the file is missing or changed.
        """
        path = self.parents[role] / name
        hint = f"delete {self.parents[role]} and run the parent again"
        recorded = self.parent(role).artefacts.get(name) if path.is_file() else None
        if recorded is None:
            raise DpbenchError(f"{path}: the run before this one has not left {name}", hint)
        if (actual := sha256_file(path)) != recorded:
            raise DpbenchError(f"{path}: damaged or replaced: its sha256 is {actual}, the record beside it says {recorded}", hint)
        return path

    def artefacts(self, role: str, names: Sequence[str]) -> Path:
        """Return the folder of a parent run after checking each of `names` as `artefact` does.

        Raises:
            DpbenchError: as `artefact`.
        """
        for name in names:
            self.artefact(role, name)
        return self.parents[role]


@dataclass
class Outcome:
    """The results of a job."""

    metrics: list[Metric]
    mechanism: dict[str, Any] | None = None
    privacy: Privacy | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    artefacts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    device: str = "cpu"


def metric(name: str, value: float, unit: str) -> Metric:
    """Return a metric of a run that is one cell."""
    return Metric(name=name, value=float(value), unit=unit)


def over_rounds(name: str, unit: str, labels: dict[str, str], values: list[float]) -> Metric:
    """Return a metric that is the median over rounds, with its 20 % and 80 % quantiles."""
    low, high = (float(q) for q in np.quantile(values, [0.2, 0.8]))
    return Metric(name=name, value=statistics.median(values), unit=unit, labels=labels, rounds=values, low=low, high=high)

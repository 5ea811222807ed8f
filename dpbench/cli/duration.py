"""How long runs take on a machine: what their committed records took, and where there is none, what the tables plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dpbench.records.packed import recorded_records
from dpbench.spec.expand import Run


@dataclass(frozen=True)
class Duration:
    """Wall time of some runs that fill a machine's cores without a gap.

    Args:
        minutes: of all runs; a process' start and imports, about a second a run, are not counted.
        recorded: how many of them by the seconds of a committed record.
        planned: how many by their table's plan, which is no measurement.
        cores: of the machine.
    """

    minutes: float
    recorded: int
    planned: int
    cores: int

    def __str__(self) -> str:
        by = {"committed records": self.recorded, "the tables' plans": self.planned}
        said = ", ".join(f"{runs} by {source}" for source, runs in by.items() if runs)
        return f"about {self.minutes:.0f} minutes on {self.cores} cores ({said})"


def recorded_seconds() -> dict[str, float]:
    """Seconds of each committed run that were not on a GPU's machine, by its id."""
    return {s.record.run: s.record.seconds for s in recorded_records() if s.record.environment.device == "cpu"}


def duration(runs: Iterable[Run], seconds: dict[str, float], cores: int) -> Duration:
    """What `runs` take where nothing waits: seconds times the cores that each holds, over all cores.

    A run holds as many cores as its table plans, also where its record was made with fewer: that errs to the long side.
    A GPU's runs are taken by their plan, one after another.
    """
    total = 0.0
    recorded = planned = 0
    for run in runs:
        wanted = run.resources.threads
        held = cores if wanted == "all" or run.resources.gpu else min(wanted, cores)
        if run.id in seconds and not run.resources.gpu:
            recorded += 1
            total += held * seconds[run.id]
        else:
            planned += 1
            total += held * 60 * run.resources.minutes
    return Duration(total / cores / 60, recorded, planned, cores)

"""Estimate how long runs take on a machine: from their committed records, and where there is none, from the tables' plans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dpbench.records.packed import recorded_records
from dpbench.spec.expand import Run


@dataclass(frozen=True)
class Duration:
    """Wall time of some runs that fill a machine's cores without a gap.

    Args:
        minutes: for all runs, without the start and imports of each process, which are about a second per run.
        recorded: number of runs whose time is that of a committed record.
        planned: number of runs whose time is the plan of their table, which is not a measurement.
        cores: cores of the machine.
    """

    minutes: float
    recorded: int
    planned: int
    cores: int

    def __str__(self) -> str:
        counts = {"committed records": self.recorded, "the tables' plans": self.planned}
        sources = ", ".join(f"{runs} by {source}" for source, runs in counts.items() if runs)
        return f"about {self.minutes:.0f} minutes on {self.cores} cores ({sources})"


def recorded_seconds() -> dict[str, float]:
    """Return the seconds of each committed run on a CPU, by its id."""
    return {s.record.run: s.record.seconds for s in recorded_records() if s.record.environment.device == "cpu"}


def duration(runs: Iterable[Run], seconds: dict[str, float], cores: int) -> Duration:
    """Return the time of `runs` if no core is ever idle: the sum of seconds times the cores of each run, over all cores.

    A run takes as many cores as its table plans, even if its record took fewer: the estimate is rather too long.
    Runs on a GPU are counted by their plan, one after another.
    """
    total = 0.0
    recorded = planned = 0
    for run in runs:
        threads = run.resources.threads
        run_cores = cores if threads == "all" or run.resources.gpu else min(threads, cores)
        if run.id in seconds and not run.resources.gpu:
            recorded += 1
            total += run_cores * seconds[run.id]
        else:
            planned += 1
            total += run_cores * 60 * run.resources.minutes
    return Duration(total / cores / 60, recorded, planned, cores)

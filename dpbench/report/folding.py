"""Fold the cells of one side of a claim along axes: a sum over a grid, the best of a row, the spread of the bests."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Container, Sequence

from dpbench.report.data import Entry, grouped
from dpbench.spec.models import Fold

_FOLDS: dict[Fold, Callable[[Sequence[float]], float]] = {
    "sum": sum,
    "max": max,
    "min": min,
    "spread": lambda values: max(values) - min(values),
}


def folded(entries: list[Entry], over: dict[str, Fold], cells: list[dict[str, str]]) -> list[Entry]:
    """Fold the axes of `over`, in that order; return one entry for each combination of the other labels.

    Values are folded seed by seed, over the seeds that all cells have. A part of a grid tells nothing about all of it: where one
    of the cells has no value, the folded entry has none either, and its note says so.

    Args:
        entries: the entries of one metric, place and side; cells: the labels of all cells of this side at that place's tier.
    """
    return [
        _fold(dict(labels), members, over, [c for c in cells if _unfolded(c, over) == labels])
        for labels, members in grouped(entries, lambda e: _unfolded(e.labels, over)).items()
    ]


def _unfolded(labels: dict[str, str], over: Container[str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((axis, value) for axis, value in labels.items() if axis not in over))


def _fold(labels: dict[str, str], members: list[Entry], over: dict[str, Fold], cells: list[dict[str, str]]) -> Entry:
    valued = [e for e in members if e.value is not None]
    base = members[0].model_copy(
        update={"labels": labels, "rounds": [], "low": None, "high": None, "spread": None, "by_seed": {}}
    )
    lacking = [c for c in cells if all(e.labels != c for e in valued)]
    if lacking or not valued:
        note = f"{len(cells) - len(lacking)} of {len(cells)} cells have a value"
        return base.model_copy(update={"value": None, "note": note})
    seeds = [s for s in valued[0].by_seed if all(s in e.by_seed for e in valued)]
    by_seed = {s: _value([(e.labels, e.by_seed[s]) for e in valued], over) for s in seeds}
    return base.model_copy(
        update={
            "value": statistics.fmean(by_seed.values()) if by_seed else None,
            "by_seed": by_seed,
            "n": len(by_seed),
            "runs": list(dict.fromkeys(run for e in valued for run in e.runs)),
            "synthetic": any(e.synthetic for e in valued),
            "simulated": any(e.simulated for e in valued),
            "counted": all(e.counted for e in valued),
            "note": "" if by_seed else "its cells have no seed in common",
        }
    )


def _value(labelled_values: list[tuple[dict[str, str], float]], over: dict[str, Fold]) -> float:
    """Fold axis after axis: each fold works on the values that the one before it gave."""
    for axis, fold in over.items():
        groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
        for labels, value in labelled_values:
            groups.setdefault(_unfolded(labels, [axis]), []).append(value)
        labelled_values = [(dict(labels), _FOLDS[fold](values)) for labels, values in groups.items()]
    return labelled_values[0][1]

"""Pair two selections of cells and judge them: estimate, 95 % t-interval and verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from dpbench.report.data import Entry
from dpbench.report.folding import folded
from dpbench.spec.expand import matches
from dpbench.spec.models import ClaimTest, Precondition
from dpbench.validation import Strict

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]
CONFIDENCE = 0.95


class CellEstimate(Strict):
    """One pair of cells. labels: those they share; compared: their difference or ratio."""

    labels: dict[str, str]
    of: float
    against: float
    compared: float
    runs: list[str]


class Pairing(Strict):
    """All pairs of cells of one comparison, judged together.

    estimate: mean difference or geometric mean of ratios; low, high: its 95 % t-interval over `n` seeds or rounds;
    shortfall: how far the estimate is beyond the threshold, negative on the claimed side, None without an estimate.
    """

    of: dict[str, str]
    against: dict[str, str]
    verdict: Verdict = "inconclusive"
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    over: Literal["seeds", "rounds"]
    cells: list[CellEstimate] = Field(default_factory=list)
    reasons: list[str] = Field(default_factory=list)
    shortfall: float | None = None


def pairs_of(
    test: ClaimTest, entries: list[Entry], axes: list[str], cells: list[dict[str, str]]
) -> Iterator[tuple[dict[str, str], dict[str, str], list[tuple[Entry, Entry]]]]:
    """Yield each comparison that a test asks for, with the pairs of entries that agree on every axis it does not name.

    Values that the test asks for but that have no entry give a comparison without pairs.

    Args:
        cells: labels of all cells of the entries' tier, so that no part of a grid is folded as if it were all of it.
    """
    unfolded_axes = [a for a in axes if a not in test.reduce]
    named_axes = [a for a in unfolded_axes if a in test.of or a in test.against]
    shared_axes = [a for a in unfolded_axes if a not in named_axes]
    candidates = [e for e in entries if matches(e.labels, test.where)]
    sides = []
    for selection in (test.of, test.against):
        selected = [e for e in candidates if matches(e.labels, selection)]
        if test.reduce:
            selected = folded(selected, test.reduce, [c for c in cells if matches(c, test.where) and matches(c, selection)])
        by_value: dict[tuple[str, ...], dict[tuple[str, ...], Entry]] = {}
        for entry in selected:
            value = tuple(entry.labels[a] for a in named_axes)
            by_value.setdefault(value, {})[tuple(entry.labels[a] for a in shared_axes)] = entry
        sides.append((by_value, _absent(selection, by_value, named_axes)))
    (of_by_value, of_absent), (against_by_value, against_absent) = sides
    for of_value, of_cells in of_by_value.items():
        of = dict(zip(named_axes, of_value, strict=True))
        for against_value, against_cells in against_by_value.items():
            shared = [key for key in of_cells if key in against_cells]
            against = dict(zip(named_axes, against_value, strict=True))
            yield of, against, [(of_cells[key], against_cells[key]) for key in shared]
        for against in against_absent:
            yield of, against, []
    for of in of_absent:
        for against in [dict(zip(named_axes, v, strict=True)) for v in against_by_value] + against_absent:
            yield of, against, []


def _absent(
    selection: dict[str, str | list[str]], by_value: dict[tuple[str, ...], dict[tuple[str, ...], Entry]], named_axes: list[str]
) -> list[dict[str, str]]:
    """Return the values of one axis that a test names and no entry has."""
    absent = []
    for axis, values in selection.items():
        if axis not in named_axes:  # folded
            continue
        seen = {value[named_axes.index(axis)] for value in by_value}
        absent += [{axis: v} for v in (values if isinstance(values, list) else [values]) if v not in seen]
    return absent


def _series(pairs: list[tuple[Entry, Entry]]) -> tuple[Literal["seeds", "rounds"], list[list[tuple[float, float]]]]:
    """Return the kind of repetition, and for each one the (of, against) values of every pair.

    Repetitions are seeds, or rounds where there is only one seed and it has several rounds.
    """
    seeds = set.intersection(*({*a.by_seed} & {*b.by_seed} for a, b in pairs))
    if len(seeds) < 2 and all(len(a.rounds) >= 2 and len(b.rounds) >= 2 for a, b in pairs):
        n = min(min(len(a.rounds), len(b.rounds)) for a, b in pairs)
        return "rounds", [[(a.rounds[i], b.rounds[i]) for a, b in pairs] for i in range(n)]
    return "seeds", [[(a.by_seed[s], b.by_seed[s]) for a, b in pairs] for s in sorted(seeds, key=int)]


def t_interval(values: list[float]) -> tuple[float, float, float]:
    """Return (mean, low, high), the 95 % t-interval of the mean of at least two values; a single point if all are equal."""
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * error
    return mean, mean - reach, mean + reach


def decide(low: float, high: float, side: str, threshold: float) -> Verdict:
    """Return the verdict on an interval.

    The threshold itself is on the claimed side, within rounding: exp of log changes the last digit.
    """
    slack = 1e-12 * max(1.0, abs(threshold))
    if side == "at_most":
        low, high, threshold = -high, -low, -threshold
    if low >= threshold - slack:
        return "reproduced"
    return "not reproduced" if high < threshold - slack else "inconclusive"


def unmet(condition: Precondition, labels: dict[str, str], entries: list[Entry]) -> str:
    """Return why a setting does not meet a precondition, empty if it does.

    Args:
        labels: those of one cell of the setting.
    """
    setting = {axis: value for axis, value in labels.items() if axis not in condition.of}
    selection: dict[str, str | list[str]] = {**condition.of, **setting}
    where = ", ".join(f"{axis} {value}" for axis, value in setting.items())
    for entry in entries:
        if entry.metric == condition.metric and matches(entry.labels, selection) and entry.value is not None:
            values = list(entry.by_seed.values()) or [entry.value]
            mean, low, high = t_interval(values) if len(values) > 1 else (values[0],) * 3
            return "" if low > condition.above else f"at {where} {condition.metric} is {mean:.1f} ({low:.1f} to {high:.1f})"
    return f"at {where} there is no {condition.metric} of {', '.join(condition.of.values())}"


def judge_pairing(test: ClaimTest, of: dict[str, str], against: dict[str, str], pairs: list[tuple[Entry, Entry]]) -> Pairing:
    """Judge one comparison on pairs of entries that have values.

    Ratios are combined on the log scale, so that halving and doubling cancel.
    """
    compares, side, threshold = test.threshold
    ratio = compares == "ratio"
    over, series = _series(pairs)
    valued = [(a, a.value, b, b.value) for a, b in pairs if a.value is not None and b.value is not None]
    compared = [value for step in series for pair in step for value in pair] + [v for _, x, _, y in valued for v in (x, y)]
    if ratio and min(compared, default=1.0) <= 0:
        reason = "a ratio needs values above 0"
        return Pairing(of=of, against=against, n=len(series), over=over, reasons=[reason])
    steps = [statistics.fmean(math.log(a / b) if ratio else a - b for a, b in step) for step in series]
    verdict: Verdict = "inconclusive"
    reason = f"a single {over.rstrip('s')} gives no interval" if steps else "the two sides have no seed in common"
    estimate, low, high = steps[0] if steps else None, None, None
    if len(steps) >= 2:
        estimate, low, high = t_interval(steps)
    elif steps and all(e.counted for pair in pairs for e in pair):
        low = high = estimate
    if ratio:
        estimate, low, high = (None if bound is None else math.exp(bound) for bound in (estimate, low, high))
    if low is not None and high is not None:
        verdict, reason = decide(low, high, side, threshold), "the interval holds the threshold"
    cells = [
        CellEstimate(
            labels={k: v for k, v in a.labels.items() if k not in test.of and k not in test.against},
            of=x,
            against=y,
            compared=x / y if ratio else x - y,
            runs=list(dict.fromkeys([*a.runs, *b.runs])),
        )
        for a, x, b, y in valued
    ]
    return Pairing(
        of=of,
        against=against,
        verdict=verdict,
        estimate=estimate,
        low=low,
        high=high,
        n=len(steps),
        over=over,
        cells=cells,
        reasons=[reason] if verdict == "inconclusive" else [],
        shortfall=None if estimate is None else (threshold - estimate if side == "at_least" else estimate - threshold),
    )

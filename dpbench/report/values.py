"""Combine the metrics of a cell's records into one entry."""

from __future__ import annotations

import statistics

from dpbench.records.schema import Metric
from dpbench.records.store import Stored
from dpbench.report.data import Entry, Place
from dpbench.report.words import source_line


def _unique(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def entry_of(
    place: Place, labels: dict[str, str], name: str, unit: str, by_seed_metrics: dict[int, tuple[Metric, Stored]]
) -> Entry:
    """Return the entry of one metric of one cell: the mean over seeds, or the median over rounds of a single run.

    Args:
        by_seed_metrics: seed -> the metric and the record it is in; all runs used the same data and models.
    """
    records = [stored.record for _, stored in by_seed_metrics.values()]
    by_seed = {seed: metric.value for seed, (metric, _) in by_seed_metrics.items() if metric.value is not None}
    missing = [f"seed {seed}: {m.note}" for seed, (m, _) in by_seed_metrics.items() if m.value is None]
    metrics = [metric for metric, _ in by_seed_metrics.values() if metric.value is not None]
    spread = low = high = None
    spread_kind, rounds = "", list[float]()
    n = len(by_seed)
    if n >= 2:
        spread, spread_kind = statistics.stdev(by_seed.values()), f"standard deviation over {n} seeds"
    elif n == 1:
        metric_of_one_seed = metrics[0]
        rounds, low, high = list(metric_of_one_seed.rounds), metric_of_one_seed.low, metric_of_one_seed.high
        if len(rounds) >= 2:
            n = len(rounds)
            spread_kind = f"20-80 % over {n} rounds" if low is not None and high is not None else ""
    notes = _unique([m.note for m in metrics if m.note])
    text = ""
    if not by_seed:
        notes = _unique([metric.note for metric, _ in by_seed_metrics.values()])
        texts = _unique([metric.text for metric, _ in by_seed_metrics.values()])
        text = texts[0] if len(texts) == 1 else ""
    else:
        notes += missing
    first = records[0]
    return Entry(
        **place._asdict(),
        labels=labels,
        metric=name,
        value=statistics.fmean(by_seed.values()) if by_seed else None,
        text=text,
        unit=metrics[0].unit if metrics else unit,
        spread=spread,
        spread_kind=spread_kind,
        low=low,
        high=high,
        n=n,
        by_seed={str(seed): value for seed, value in by_seed.items()},
        rounds=rounds,
        runs=_unique([record.run for record in records]),
        synthetic=any(record.synthetic for record in records),
        simulated=any(metric.kind == "simulated" for metric in metrics),
        counted=bool(metrics) and all(metric.kind == "counted" for metric in metrics),
        privacy=first.privacy,
        sources=_unique([source_line(k, s) for record in records for k, s in sorted(record.all_sources.items())]),
        warnings=_unique([w for record in records for w in record.warnings]),
        note="; ".join(notes),
    )

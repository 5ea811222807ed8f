"""Records and published values -> one `TableData`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dpbench.files import canonical_json
from dpbench.records.schema import Metric
from dpbench.records.store import LeftOut, Stored
from dpbench.report.current import Current, Place
from dpbench.report.data import CellState, Entry, RecordInfo, StaleRecord, TableData, TierInfo
from dpbench.report.deviations import deviations
from dpbench.report.values import entry_of
from dpbench.report.words import environment_line, source_line
from dpbench.spec.expand import Plan, Resolve, axis_values, cells_at, expand, merge, overrides_of, tier_axes
from dpbench.spec.models import TIERS, TableSpec
from dpbench.spec.related import related
from dpbench.spec.tables import published

Key = tuple[str, ...]
"""A cell: its axis values in the table's order of axes."""


@dataclass
class _Found:
    """Records of one cell at one place, by what they were made from, then by seed."""

    labels: dict[str, str]
    select: dict[str, str]
    by_sources: dict[str, dict[int, Stored]]

    def best(self) -> dict[int, Stored]:
        """Records that share data and models: never synthetic where there are real ones, then the most seeds, then the newest."""

        def rank(by_seed: dict[int, Stored]) -> tuple[bool, int, str]:
            records = [s.record for s in by_seed.values()]
            return not any(record.synthetic for record in records), len(records), max(r.created for r in records)

        return max(self.by_sources.values(), key=rank)


def _gather(
    spec: TableSpec, plan: Plan, local: list[Stored], recorded: list[Stored], current: Current
) -> dict[tuple[Place, Key], _Found]:
    """Every record that fills a cell, under the place and cell it fills."""
    gathered: dict[tuple[Place, Key], _Found] = {}

    def add(place: Place, labels: dict[str, str], select: dict[str, str], seed: int, stored: Stored) -> None:
        key = (place, tuple(labels[a] for a in spec.axes))
        found = gathered.setdefault(key, _Found(labels, select, defaultdict(dict)))
        found.by_sources[_fingerprint(stored)].setdefault(seed, stored)

    own = {s.record.run: s for s in local}
    for cell in plan.cells:
        if cell.run in own:
            add(("here", plan.tier, ""), cell.labels, cell.select, cell.seed, own[cell.run])
    for stored in (*local, *recorded):
        for request in current.cells_of(stored.record):
            place: Place = ("recorded", request.tier, stored.machine) if stored.machine else ("here", request.tier, "")
            if place != ("here", plan.tier, ""):  # what this machine was asked for is in the plan, by name
                add(place, request.labels, request.select, stored.record.config["seed"], stored)
    part = _parts(gathered, ("here", plan.tier, ""))
    return {key: found for key, found in gathered.items() if key[0] not in part}


def _fingerprint(stored: Stored) -> str:
    """Return one text per set of data and models: records that differ in it are never averaged."""
    return canonical_json({name: source.identity for name, source in stored.record.all_sources.items()})


def _parts(gathered: dict[tuple[Place, Key], _Found], asked: Place) -> set[Place]:
    """Places whose records all stand at a larger tier of the same machine, or one with more, too; never the one asked for."""
    runs: dict[Place, set[str]] = defaultdict(set)
    for (place, _), found in gathered.items():
        runs[place] |= {stored.record.run for by_seed in found.by_sources.values() for stored in by_seed.values()}

    def within(place: Place, other: Place) -> bool:
        same = (place[0], place[2]) == (other[0], other[2]) and place != other
        larger = TIERS.index(other[1]) > TIERS.index(place[1])
        return same and (runs[place] < runs[other] or (runs[place] == runs[other] and larger))

    return {place for place in runs if place != asked and any(within(place, other) for other in runs)}


def _entries(spec: TableSpec, gathered: dict[tuple[Place, Key], _Found]) -> list[Entry]:
    found: list[Entry] = []
    for item in published(spec):
        found.append(
            Entry(
                origin="published",
                labels=item.labels,
                metric=item.metric,
                value=item.value,
                unit=item.unit,
                spread=item.spread,
                spread_kind=item.spread_kind,
                source=item.source,
            )
        )
    for (place, _), cell in gathered.items():
        by_seed = cell.best()
        for name, metric in spec.metrics.items():
            picked: dict[int, tuple[Metric, Stored]] = {}
            for seed, stored in sorted(by_seed.items()):
                for candidate in stored.record.metrics:
                    if candidate.name == name and candidate.labels == cell.select:
                        picked[seed] = (candidate, stored)
            if picked:
                found.append(entry_of(place, cell.labels, name, metric.unit, picked))
    return found


def _axis_order(spec: TableSpec, tier: str, labels: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """Axis -> values: the table's own order, then those that tiers or documents add."""
    order: dict[str, dict[str, None]] = {axis: {} for axis in spec.axes}
    for axis, given in (spec.rows | spec.columns).items():
        order[axis].update(dict.fromkeys(axis_values(axis, given)))
    for name in (tier, *TIERS):
        for axis, values in tier_axes(spec, name).items():
            order[axis].update(dict.fromkeys(values))
    for cell in labels:
        for axis in spec.axes:
            order[axis].setdefault(cell[axis])
    return {axis: list(values) for axis, values in order.items()}


def _state(entries: list[Entry], tier: str, in_tier: bool, why: str | None) -> str:
    """What is known of a cell, in words; the strongest statement first."""
    valued = [e for e in entries if e.value is not None]
    here = sorted((e for e in valued if e.origin == "here"), key=lambda e: e.tier != tier)
    real = [e for e in here if not (e.synthetic or e.simulated or e.tier == "smoke")]
    if real:
        return "reproduced here"
    if here:
        first = here[0]
        kind = "synthetic" if first.synthetic else "simulated" if first.simulated else "smoke"
        return f"run here ({kind})"
    if any(e.origin == "recorded" for e in valued):
        return "recorded"
    if why is None:
        why = next((e.note for e in entries if e.value is None and e.note), None)
    if why is not None and not any(e.origin == "published" for e in valued):
        return f"skipped: {why.removeprefix('skipped:').strip()}"
    if any(e.origin == "published" for e in valued):
        return "published only"
    return "not run"


def _tier_info(spec: TableSpec, tier: str, seeds: list[int] | None) -> TierInfo:
    over = spec.tiers[tier]  # type: ignore[index]
    return TierInfo(
        tier=tier,
        settings=merge(spec.settings, over.settings),
        axes=tier_axes(spec, tier),
        origin=spec.origin | over.origin,
        seeds=seeds or over.seeds or spec.seeds,
        note=over.note,
        overrides=overrides_of(spec, tier),
        cells=list(cells_at(spec, tier)),
    )


def _record_info(stored: Stored) -> RecordInfo:
    record = stored.record
    return RecordInfo(
        run=record.run,
        machine=stored.machine or "",
        job=str(record.config.get("job", "")),
        seed=record.config.get("seed"),
        requests=record.requests,
        environment=environment_line(record.environment),
        sources=[source_line(name, source) for name, source in sorted(record.sources.items())],
        synthetic=record.synthetic,
        created=record.created,
        seconds=record.seconds,
        warnings=record.warnings,
        record=record.model_dump(mode="json"),
    )


def build_table(
    spec: TableSpec,
    tier: str,
    resolve: Resolve,
    local: list[Stored],
    recorded: list[Stored],
    seeds: list[int] | None = None,
    left_out: list[LeftOut] | None = None,
) -> TableData:
    """Everything known of a table: published, recorded and this machine's values, side by side.

    Args:
        tier: the one that this machine was asked to run.
        resolve: where data and models come from now; local values at `tier` were made from those.
        local: this machine's records; recorded: the committed ones. Both may hold other tables' records.
        seeds: instead of the table's own; left_out: records that did not hold, to be named in the report.

    Raises:
        DpbenchError: the table cannot be expanded at `tier`, or its published or related values or deviations are malformed.
    """
    plan = expand(spec, tier, resolve, seeds)
    current = Current(spec)
    gathered = _gather(spec, plan, local, recorded, current)
    entries = _entries(spec, gathered)

    axes = _axis_order(spec, tier, (e.labels for e in entries))
    rank = {axis: {value: i for i, value in enumerate(values)} for axis, values in axes.items()}

    def order(labels: dict[str, str]) -> tuple[int, ...]:
        return tuple(rank[axis][labels[axis]] for axis in spec.axes)

    names = list(spec.metrics)
    origins = ("published", "recorded", "here")
    entries.sort(
        key=lambda e: (
            order(e.labels),
            names.index(e.metric) if e.metric in names else len(names),
            origins.index(e.origin),
            -TIERS.index(e.tier) if e.tier else 0,
            e.machine,
        )
    )

    in_tier = {tuple(c.labels.values()) for c in plan.cells}
    skipped = {tuple(labels.values()): why for labels, why in plan.skipped}
    known: dict[Key, dict[str, str]] = {tuple(c.labels.values()): c.labels for c in plan.cells}
    known |= {tuple(labels.values()): labels for labels, _ in plan.skipped}
    kept = set()
    for labels, why in current.paper_cells():
        known.setdefault(tuple(labels.values()), labels)
        if why is not None and tuple(labels.values()) not in in_tier:
            skipped.setdefault(tuple(labels.values()), why)
        if why is not None:
            kept.add(tuple(labels.values()))
    by_cell: dict[Key, list[Entry]] = defaultdict(list)
    for entry in entries:
        key = tuple(entry.labels[a] for a in spec.axes)
        known.setdefault(key, {a: entry.labels[a] for a in spec.axes})
        by_cell[key].append(entry)
    cells = [
        CellState(
            labels=labels,
            state=_state(by_cell[key], tier, key in in_tier, skipped.get(key)),
            in_tier=key in in_tier,
            kept=key in kept,
        )
        for key, labels in sorted(known.items(), key=lambda item: order(item[1]))
    ]

    used = {run for e in entries for run in e.runs}
    shown = [s for s in (*local, *recorded) if s.record.run in used or current.is_part(s.record)]
    tiers_with_values = {e.tier for e in entries if e.tier}
    return TableData(
        paper=spec.paper,
        table=spec.table,
        title=spec.title,
        source=spec.source,
        tier=tier,
        metrics=spec.metrics,
        rows=list(spec.rows),
        columns=list(spec.columns),
        axes=axes,
        entries=entries,
        cells=cells,
        tiers=[_tier_info(spec, t, seeds if t == tier else None) for t in TIERS if t == tier or t in tiers_with_values],
        notes=spec.notes,
        claims=spec.claims,
        plots=spec.plots,
        deviations=deviations(spec.paper),
        related=related(spec),
        stale=[
            StaleRecord(
                run=s.record.run,
                machine=s.machine or "",
                tiers=sorted({r.tier for r in s.record.requests if (r.paper, r.table) == (spec.paper, spec.table)}),
                created=s.record.created,
            )
            for s in (*local, *recorded)
            if current.is_stale(s.record)
        ],
        records=[_record_info(s) for s in shown],
        left_out=left_out or [],
    )

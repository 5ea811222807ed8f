"""Collect records and published values into one `TableData`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dpbench.files import canonical_json
from dpbench.records.store import LeftOut, Stored
from dpbench.report.current import Current
from dpbench.report.data import CellState, Entry, Place, RecordInfo, StaleRecord, TableData, TierInfo
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
class _CellRecords:
    """The records of one cell at one place, by their data and models, then by seed."""

    labels: dict[str, str]
    select: dict[str, str]
    by_sources: dict[str, dict[int, Stored]]

    def best(self) -> dict[int, Stored]:
        """Return the best records that share data and models: real before synthetic, then the most seeds, then the newest."""

        def rank(by_seed: dict[int, Stored]) -> tuple[bool, int, str]:
            records = [s.record for s in by_seed.values()]
            return not any(record.synthetic for record in records), len(records), max(r.created for r in records)

        return max(self.by_sources.values(), key=rank)


def _gather(
    spec: TableSpec, plan: Plan, local: list[Stored], recorded: list[Stored], current: Current
) -> dict[tuple[Place, Key], _CellRecords]:
    """Return every record that fills a cell, by place and cell."""
    gathered: dict[tuple[Place, Key], _CellRecords] = {}

    def add(place: Place, labels: dict[str, str], select: dict[str, str], seed: int, stored: Stored) -> None:
        key = (place, tuple(labels[a] for a in spec.axes))
        cell_records = gathered.setdefault(key, _CellRecords(labels, select, defaultdict(dict)))
        cell_records.by_sources[_fingerprint(stored)].setdefault(seed, stored)

    requested = Place("here", plan.tier)
    local_by_run = {s.record.run: s for s in local}
    for cell in plan.cells:
        if cell.run in local_by_run:
            add(requested, cell.labels, cell.select, cell.seed, local_by_run[cell.run])
    for stored in (*local, *recorded):
        for request in current.cells_of(stored.record):
            place = Place("recorded" if stored.machine else "here", request.tier, stored.machine or "")
            if place != requested:  # the plan above names the runs of this machine at this tier
                add(place, request.labels, request.select, stored.record.config["seed"], stored)
    redundant = _redundant_places(gathered, requested)
    return {key: cell_records for key, cell_records in gathered.items() if key[0] not in redundant}


def _fingerprint(stored: Stored) -> str:
    """Return one text per set of data and models: records that differ in it are never averaged."""
    return canonical_json({name: source.identity for name, source in stored.record.all_sources.items()})


def _redundant_places(gathered: dict[tuple[Place, Key], _CellRecords], requested: Place) -> set[Place]:
    """Return the places whose records are all at another tier of the same machine too, one with more records or a larger one.

    The requested place is never among them.
    """
    runs: dict[Place, set[str]] = defaultdict(set)
    for (place, _), cell_records in gathered.items():
        runs[place] |= {stored.record.run for by_seed in cell_records.by_sources.values() for stored in by_seed.values()}

    def within(place: Place, other: Place) -> bool:
        same = (place.origin, place.machine) == (other.origin, other.machine) and place != other
        larger = TIERS.index(other.tier) > TIERS.index(place.tier)
        return same and (runs[place] < runs[other] or (runs[place] == runs[other] and larger))

    return {place for place in runs if place != requested and any(within(place, other) for other in runs)}


def _entries(spec: TableSpec, gathered: dict[tuple[Place, Key], _CellRecords]) -> list[Entry]:
    entries = [Entry(origin="published", **item.model_dump()) for item in published(spec)]
    for (place, _), cell in gathered.items():
        by_seed = cell.best()
        for name, metric in spec.metrics.items():
            by_seed_metrics = {
                seed: (candidate, stored)
                for seed, stored in sorted(by_seed.items())
                for candidate in stored.record.metrics
                if candidate.name == name and candidate.labels == cell.select
            }
            if by_seed_metrics:
                entries.append(entry_of(place, cell.labels, name, metric.unit, by_seed_metrics))
    return entries


def _axis_order(spec: TableSpec, tier: str, labels: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    """Return each axis' values: in the table's order, then those that tiers or documents add."""
    order: dict[str, dict[str, None]] = {axis: {} for axis in spec.axes}
    for axis, axis_spec in (spec.rows | spec.columns).items():
        order[axis].update(dict.fromkeys(axis_values(axis, axis_spec)))
    for name in (tier, *TIERS):
        for axis, values in tier_axes(spec, name).items():
            order[axis].update(dict.fromkeys(values))
    for cell in labels:
        for axis in spec.axes:
            order[axis].setdefault(cell[axis])
    return {axis: list(values) for axis, values in order.items()}


def _keys(plan: Plan) -> tuple[set[Key], dict[Key, str]]:
    """Return the cells of a plan, and those that it skips with the reason."""
    return {tuple(c.labels.values()) for c in plan.cells}, {tuple(labels.values()): why for labels, why in plan.skipped}


def _cells(spec: TableSpec, plan: Plan, current: Current, entries: list[Entry]) -> list[CellState]:
    """Return the cells of the plan, of the published table and of all entries, each with its state."""
    paper_cells, paper_skipped = _keys(current.plan("paper"))
    in_tier, tier_skipped = _keys(plan)
    skipped = paper_skipped | tier_skipped
    by_cell: dict[Key, list[Entry]] = {key: [] for key in (*in_tier, *paper_cells, *skipped)}
    for entry in entries:
        by_cell.setdefault(tuple(entry.labels[a] for a in spec.axes), []).append(entry)
    return [
        CellState(
            labels=dict(zip(spec.axes, key, strict=True)),
            state=_state(cell_entries, plan.tier, None if key in in_tier else skipped.get(key)),
            in_tier=key in in_tier,
            kept=key in paper_skipped,
        )
        for key, cell_entries in by_cell.items()
    ]


def _state(entries: list[Entry], tier: str, why: str | None) -> str:
    """Return what is known of a cell, in words; the strongest statement wins."""
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
    tier_spec = spec.tiers[tier]  # type: ignore[index]
    return TierInfo(
        tier=tier,
        settings=merge(spec.settings, tier_spec.settings),
        axes=tier_axes(spec, tier),
        origin=spec.origin | tier_spec.origin,
        seeds=seeds or tier_spec.seeds or spec.seeds,
        note=tier_spec.note,
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
    """Collect everything known of a table: published, recorded and this machine's values, side by side.

    Args:
        tier: the tier that this machine was asked to run.
        resolve: tells where data and models come from now; local values at `tier` were computed from those.
        local: this machine's records; recorded: the committed ones. Both may contain other tables' records.
        seeds: these replace the table's; left_out: invalid records, to be named in the report.

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

    metric_rank = {name: i for i, name in enumerate(spec.metrics)}
    entries.sort(key=lambda e: (order(e.labels), metric_rank.get(e.metric, len(metric_rank)), e.place.order))

    cells = sorted(_cells(spec, plan, current, entries), key=lambda cell: order(cell.labels))
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

"""Lay a table out as it is printed: rows, columns, and under each column the origins that have a value in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from dpbench.report.data import Entry, Place, TableData, grouped
from dpbench.report.words import EMPTY, MARKS, heading, label_text, number
from dpbench.spec.models import TIERS, MetricSpec

MOST_EMPTY_ROWS = 12


@dataclass(frozen=True)
class Column:
    """One column. labels: column axis -> value; place: None where no value of the column is known."""

    labels: dict[str, str]
    place: Place | None

    @property
    def place_text(self) -> str:
        return self.place.text if self.place else EMPTY


@dataclass(frozen=True)
class Slot:
    """One place in the grid. entry: None where it is empty; why: the reason for that, which a footnote states."""

    entry: Entry | None
    text: str
    interval: str = ""
    marks: str = ""
    why: str = ""

    @property
    def plain(self) -> str:
        return f"{self.text}{self.marks}{' ' + self.interval if self.interval else ''}"


@dataclass
class Block:
    """All values of one main metric."""

    metric: str
    spec: MetricSpec
    row_axes: list[str]
    column_axes: list[str]
    rows: list[dict[str, str]]
    columns: list[Column]
    slots: list[list[Slot]]
    legend: list[str] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)

    @property
    def row_heads(self) -> list[str]:
        return [axis.replace("_", " ") for axis in self.row_axes]

    def header_rows(self) -> list[list[tuple[str, int]]]:
        """Return for each column axis its (text, number of columns it spans), with equal neighbours joined."""
        texts = [self.column_texts(c) for c in self.columns]
        return [
            [(key[-1], len(list(group))) for key, group in groupby(texts, key=itemgetter(slice(depth)))]
            for depth in range(1, len(self.column_axes) + 1)
        ]

    def row_values(self, row: dict[str, str]) -> list[str]:
        """Return the axis values alone, for tables that have the names of the row axes in their header."""
        return ["∞" if row[axis] == "inf" else row[axis] for axis in self.row_axes]

    def row_texts(self, row: dict[str, str]) -> list[str]:
        """Return the axis values, each with the name of its axis where it needs one."""
        return [label_text(axis, row[axis]) for axis in self.row_axes]

    def column_texts(self, column: Column) -> list[str]:
        return [label_text(axis, column.labels[axis]) for axis in self.column_axes]

    @property
    def heading(self) -> str:
        return heading(self.metric, self.spec.unit)

    @property
    def better(self) -> str:
        return "" if self.spec.better == "neither" else f"{self.spec.better} is better"


def marks_of(entry: Entry) -> str:
    """Return the marks of a value: † synthetic, ‡ simulated, * epsilon only nominal. A published value has none."""
    marks = "†" if entry.synthetic else ""
    marks += "‡" if entry.simulated else ""
    return marks + ("*" if entry.privacy is not None and entry.privacy.validity == "nominal" else "")


def interval_of(entry: Entry, digits: int) -> str:
    """Return `± 0.4`, or `(1180–1260)` for quantiles over rounds; nothing where both quantiles are printed alike."""
    if entry.spread is not None:
        return f"± {number(entry.spread, digits)}"
    if entry.low is not None and entry.high is not None:
        low, high = number(entry.low, digits), number(entry.high, digits)
        return f"({low}–{high})" if low != high else ""
    return ""


def _projections(table: TableData, axes: list[str], keep: set[tuple[str, ...]]) -> list[dict[str, str]]:
    """Return the distinct values of `axes` over the cells in `keep`, in the table's order."""
    rank = {a: {v: i for i, v in enumerate(table.axes[a])} for a in axes}
    distinct = {tuple(c.labels[a] for a in axes) for c in table.cells if tuple(c.labels.values()) in keep}
    ordered = sorted(distinct, key=lambda values: [rank[a][v] for a, v in zip(axes, values, strict=True)])
    return [dict(zip(axes, values, strict=True)) for values in ordered]


def _places(entries: list[Entry], labels: dict[str, str], tier: str) -> list[Place]:
    """Return the places with a value in a column: published, recorded (largest tier first), here.

    Tiers that share all runs are shown once, as the tier of the table or else as the largest.
    """
    column_entries = [e for e in entries if e.known and all(e.labels[a] == v for a, v in labels.items())]
    by_place = grouped(column_entries, lambda e: e.place)
    runs = {place: {run for e in entries_there for run in e.runs} for place, entries_there in by_place.items()}
    shown: list[Place] = []
    for place in sorted(runs, key=lambda p: (p.tier != tier, -TIERS.index(p.tier) if p.tier else 0)):
        same_machine = [p for p in shown if p.origin == place.origin != "published" and p.machine == place.machine]
        if not any(runs[place] <= runs[p] for p in same_machine):
            shown.append(place)
    return sorted(shown, key=lambda p: p.order)


def _slot(table: TableData, metric: str, labels: dict[str, str], place: Place | None) -> Slot:
    entry = table.find(labels, metric, place) if place else None
    if entry is not None and entry.value is not None:
        digits = table.metrics[metric].digits
        return Slot(entry, number(entry.value, digits), interval_of(entry, digits), marks_of(entry))
    if entry is not None and entry.text:
        return Slot(entry, entry.text, marks=marks_of(entry))
    return Slot(None, EMPTY, why=_why_empty(table, labels, place, entry))


def _why_empty(table: TableData, labels: dict[str, str], place: Place | None, entry: Entry | None) -> str:
    cell = next((c for c in table.cells if c.labels == labels), None)
    skipped = cell.state if cell is not None and cell.state.startswith("skipped:") else ""
    if place is not None and place.origin == "published":
        return skipped if skipped and entry is None else "not read off the paper"
    if entry is not None:
        return f"skipped: {entry.note.removeprefix('skipped:').strip()}"
    if cell is None:
        return "no such cell"
    if skipped:
        return skipped
    if place is not None and place.origin == "recorded":
        return "not recorded"
    if place is not None and place.tier == table.tier and not cell.in_tier:
        return f"not part of the {table.tier} tier"
    return "not run"


def blocks(table: TableData) -> list[Block]:
    """Return one block per main metric, without the rows and columns that exist at no tier; a footnote gives the reason."""
    return [_block(table, name, spec) for name, spec in table.metrics.items() if spec.main]


def without_smoke(table: TableData, entries: list[Entry]) -> list[Entry]:
    """Leave out smoke values where the table is for another tier and has values of one: smoke adds nothing to them."""
    if table.tier == "smoke" or not any(e.tier not in ("", "smoke") and e.value is not None for e in entries):
        return entries
    return [e for e in entries if e.tier != "smoke"]


def with_values(table: TableData) -> list[Entry]:
    """Return the entries that have a value, without smoke values beside others."""
    return [e for e in without_smoke(table, table.entries) if e.value is not None]


def _known_rows(rows: list[dict[str, str]], entries: list[Entry]) -> tuple[list[dict[str, str]], int]:
    """Return the rows to show, those with an entry first, and the number of rows that are only counted.

    Many rows without an entry are counted instead of shown, unless there are no others.
    """
    known = [r for r in rows if any(all(e.labels[a] == v for a, v in r.items()) for e in entries)]
    empty = [r for r in rows if r not in known]
    if known and len(empty) > MOST_EMPTY_ROWS:
        return known, len(empty)
    return known + empty, 0


def _block(table: TableData, metric: str, spec: MetricSpec) -> Block:
    entries = without_smoke(table, [e for e in table.entries if e.metric == metric])
    cells_with_entry = {tuple(e.labels[a] for a in table.axes) for e in entries}
    exists = cells_with_entry | {tuple(c.labels.values()) for c in table.cells if c.kept or not c.state.startswith("skipped:")}
    rows, unknown = _known_rows(_projections(table, table.rows, exists), entries)
    columns: list[Column] = []
    for labels in _projections(table, table.columns, exists):
        places = _places(entries, labels, table.tier)
        columns += [Column(labels, place) for place in places] or [Column(labels, None)]
    slots = [[_slot(table, metric, row | column.labels, column.place) for column in columns] for row in rows]
    block = Block(metric, spec, table.rows, table.columns, rows, columns, slots)
    used = {mark for line in slots for slot in line for mark in slot.marks}
    block.legend = [f"{mark} {says}" for mark, says in MARKS.items() if mark in used]
    kinds = dict.fromkeys(e.spread_kind for e in entries if e.value is not None and e.spread_kind)
    block.footnotes = [f"Beside a value: {', '.join(kinds)}."] if kinds else []
    block.footnotes += _explain_texts(slots)
    why = dict.fromkeys(slot.why for line in slots for slot in line if slot.why)
    if why:
        block.footnotes.append(f"{EMPTY} {'; '.join(why)}.")
    if unknown:
        not_read = "not read off the paper, and " if table.source.number else ""
        block.footnotes.append(f"{unknown} more rows have no value yet: {not_read}not run.")
    if table.source.number and not any(e.origin == "published" and e.value is not None for e in entries):
        block.footnotes.append(f"Published: no value of this metric has been read off {table.source.number} yet.")
    return block


def _explain_texts(slots: list[list[Slot]]) -> list[str]:
    """Explain each text that is printed in place of a value, with all its reasons: `none: no clipping and no noise; ...`."""
    reasons: dict[str, dict[str, None]] = {}
    for slot in (slot for line in slots for slot in line):
        if slot.entry is not None and slot.entry.text:
            reasons.setdefault(slot.entry.text, {}).setdefault(slot.entry.note)
    return [f"{text}: {'; '.join(notes)}." for text, notes in reasons.items()]


def sources_used(table: TableData) -> list[str]:
    """Return the data and models of recorded values and of this machine's, one line for each place that has any."""
    lines: dict[str, dict[str, None]] = {}
    for entry in with_values(table):
        if entry.origin != "published":
            lines.setdefault(entry.place_text, {}).update(dict.fromkeys(entry.sources))
    return [f"{place}: {'; '.join(sources)}" for place, sources in lines.items() if sources]


def published_in(table: TableData) -> list[str]:
    """Return the documents that published values were read in."""
    return list(dict.fromkeys(e.source for e in table.entries if e.origin == "published"))

"""The data of a table, with all that is known of it; every writer of this package reads these classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from dpbench.errors import DpbenchError
from dpbench.files import read_text
from dpbench.records.schema import Privacy, Request
from dpbench.records.store import LeftOut
from dpbench.report.deviations import Deviation
from dpbench.spec.models import TIERS, Claim, MetricSpec, Override, Plot, Source
from dpbench.spec.related import Related
from dpbench.validation import Strict

T = TypeVar("T")
K = TypeVar("K")

Origin = Literal["published", "recorded", "here"]
ORIGINS: tuple[Origin, ...] = ("published", "recorded", "here")
LARGEST = 256 << 20  # bytes of a table's JSON, which holds all its records, and of a plot


class Place(NamedTuple):
    """What one column of values in a table shares: their origin and, if they were run, tier and machine."""

    origin: Origin
    tier: str = ""
    machine: str = ""

    @property
    def text(self) -> str:
        """The place in words: `published`, `recorded (gpu, a100)`, `here (laptop)`."""
        inside = ", ".join(part for part in (self.tier, self.machine) if part)
        return f"{self.origin} ({inside})" if inside else self.origin

    @property
    def order(self) -> tuple[int, int, str]:
        """A sort key: published, recorded, here; the largest tier first."""
        return ORIGINS.index(self.origin), -TIERS.index(self.tier) if self.tier else 0, self.machine


class Entry(Strict):
    """One value of one cell from one origin.

    origin: `published` (read off a document), `recorded` (committed, `machine` says where), `here` (this machine).
    value: the published one, the mean over seeds, or the median over rounds of a single run; None: not measured, and `note` says
        why.
    text: printed where there is nothing to measure, such as `none` for an epsilon that does not exist; `note` says why.
    spread: half-width as `spread_kind` says; low, high: 20 and 80 % quantiles over rounds.
    runs: the records that it comes from; source: the document of a published value.
    """

    origin: Origin
    tier: str = ""
    machine: str = ""
    labels: dict[str, str]
    metric: str
    value: float | None
    text: str = ""
    unit: str
    spread: float | None = None
    spread_kind: str = ""
    low: float | None = None
    high: float | None = None
    n: int = 0
    by_seed: dict[str, float] = Field(default_factory=dict)
    rounds: list[float] = Field(default_factory=list)
    runs: list[str] = Field(default_factory=list)
    synthetic: bool = False
    simulated: bool = False
    counted: bool = False
    privacy: Privacy | None = None
    sources: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    note: str = ""
    source: str = ""

    @property
    def known(self) -> bool:
        """Whether there is something to print: a value, or a text in its place."""
        return self.value is not None or bool(self.text)

    @property
    def place(self) -> Place:
        return Place(self.origin, self.tier, self.machine)

    @property
    def place_text(self) -> str:
        return self.place.text


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return the items of each key, keys and items in the order in which they come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


class CellState(Strict):
    """The state of one cell, a row and a column.

    state: what is known of it, in words; in_tier: whether the tier of `here` has it; kept: whether it is shown although it is
    left out of the run, because the published table has it.
    """

    labels: dict[str, str]
    state: str
    in_tier: bool
    kept: bool = False


class TierInfo(Strict):
    """The settings of a tier: those that its cells share, what each axis value changes, and the origin of each setting.

    overrides: settings of some cells alone; cells: the labels of all.
    """

    tier: str
    settings: dict[str, Any]
    axes: dict[str, dict[str, dict[str, Any]]]
    origin: dict[str, str]
    seeds: list[int]
    note: str = ""
    overrides: list[Override] = Field(default_factory=list)
    cells: list[dict[str, str]] = Field(default_factory=list)


class StaleRecord(Strict):
    """A record that was made for this table with other settings or versions than the current ones. No value uses it."""

    run: str
    machine: str
    tiers: list[str]
    created: str
    reason: str = "settings or versions changed since"


class RecordInfo(Strict):
    """A record for the appendix. machine: empty for a record of this machine."""

    run: str
    machine: str
    job: str
    seed: int | None
    requests: list[Request]
    environment: str
    sources: list[str]
    synthetic: bool
    created: str
    seconds: float
    warnings: list[str]
    record: dict[str, Any]


class TableData(Strict):
    """A table with its values side by side and where each came from. tier: the tier that was requested for `here`."""

    paper: str
    table: str
    title: str
    source: Source
    tier: str
    metrics: dict[str, MetricSpec]
    rows: list[str]
    columns: list[str]
    axes: dict[str, list[str]]
    entries: list[Entry]
    cells: list[CellState]
    tiers: list[TierInfo]
    notes: list[str]
    claims: list[Claim]
    plots: list[Plot]
    deviations: list[Deviation] = Field(default_factory=list)
    related: list[Related] = Field(default_factory=list)
    stale: list[StaleRecord] = Field(default_factory=list)
    records: list[RecordInfo] = Field(default_factory=list)
    left_out: list[LeftOut] = Field(default_factory=list, description="Records, of any table, that could not be used.")

    @property
    def name(self) -> str:
        return f"{self.paper}/{self.table}"

    def find(self, labels: dict[str, str], metric: str, place: Place) -> Entry | None:
        """Return the entry of a cell and metric from one place."""
        for entry in self.entries:
            if entry.metric == metric and entry.place == place and entry.labels == labels:
                return entry
        return None


def read_table(path: Path) -> TableData:
    """Read a table's JSON.

    Raises:
        DpbenchError: the file is missing, or not of the form that this dpbench writes.
    """
    try:
        return TableData.model_validate_json(read_text(path, LARGEST, "make the table first"))
    except ValidationError as error:
        raise DpbenchError(
            f"{path}: not a table's JSON ({error.error_count()} faults)", "delete it and make the table again"
        ) from error

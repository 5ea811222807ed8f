"""Finding and reading the tables under `benchmarks/`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dpbench import paths
from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_yaml
from dpbench.spec.models import TableSpec
from dpbench.spec.values import read_values
from dpbench.validation import Strict, parse


class Published(Strict):
    """One value that somebody has read off a document, with that document.

    labels: the axes it fills; model: what the paper used where that is not an axis; spread: as published, or None.
    """

    labels: dict[str, str]
    metric: str
    value: float
    unit: str
    spread: float | None = None
    spread_kind: str = ""
    source: str


def _path(paper: str, table: str) -> Path:
    return paths.benchmarks() / paper / f"{table}.yaml"


@cache
def _index(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/*.yaml")):
        if path.stem != "deviations":
            found.setdefault(path.parent.name, []).append(path.stem)
    return found


def papers() -> list[str]:
    """Papers that have at least one table."""
    return list(_index(paths.benchmarks()))


def tables_of(paper: str) -> list[str]:
    """Names of a paper's tables.

    Raises:
        DpbenchError: unknown paper.
    """
    index = _index(paths.benchmarks())
    if not index:
        raise DpbenchError(f"{paths.benchmarks()}: holds no table", "work in a clone of dpbench, or set DPBENCH_ROOT to one")
    if paper not in index:
        raise unknown("paper", paper, index)
    return index[paper]


@cache
def _load(path: Path) -> TableSpec:
    spec = parse(TableSpec, read_yaml(path), str(path))
    if (spec.paper, spec.table) != (path.parent.name, path.stem):
        raise DpbenchError(
            f"{path}: says paper {spec.paper!r}, table {spec.table!r}", "name folder and file after the paper and the table"
        )
    return spec


def load_table(paper: str, table: str) -> TableSpec:
    """Read and validate `benchmarks/<paper>/<table>.yaml`.

    Raises:
        DpbenchError: unknown paper or table, malformed YAML, unknown or wrong keys.
    """
    if table not in tables_of(paper):
        raise unknown("table", f"{paper}/{table}", (f"{paper}/{t}" for t in tables_of(paper)))
    return _load(_path(paper, table))


def load_named(name: str) -> TableSpec:
    """`load_table` for `paper/table`."""
    paper, _, table = name.partition("/")
    if not table:
        raise DpbenchError(f"{name!r} does not name a table", "write PAPER/TABLE, such as flashdp/batch_size")
    return load_table(paper, table)


def all_tables() -> list[TableSpec]:
    """Every table of every paper, in the order of their names."""
    return [load_table(paper, table) for paper in papers() for table in tables_of(paper)]


def published(spec: TableSpec) -> list[Published]:
    """The published values of a table: `benchmarks/<paper>/published/<table>.csv`, empty if nobody has read any.

    The columns are the table's axes, then metric, value, unit, spread, spread_kind, source.

    Raises:
        DpbenchError: a missing column, a value that is not a number, a value without a source.
    """
    path = paths.benchmarks() / spec.paper / "published" / f"{spec.table}.csv"
    if not path.exists():
        return []
    _, lines = read_values(path, [*spec.axes, "metric", "value", "unit", "source"])
    return [
        Published(
            labels={axis: line.row[axis] for axis in spec.axes},
            metric=line.row["metric"],
            value=line.value,
            unit=line.row["unit"],
            spread=line.spread,
            spread_kind=line.row.get("spread_kind") or "",
            source=line.row["source"],
        )
        for line in lines
        if line.value is not None
    ]

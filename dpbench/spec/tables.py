"""Find and read the tables under `benchmarks/` and in folders of plug-ins."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dpbench import paths, plugins
from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_yaml
from dpbench.spec.includes import read_table
from dpbench.spec.models import TableSpec
from dpbench.spec.values import read_values
from dpbench.validation import Strict, parse


class Published(Strict):
    """One value that somebody has read off a document, with that document.

    labels: axis -> value, for all axes; spread: as published, or None.
    """

    labels: dict[str, str]
    metric: str
    value: float
    unit: str
    spread: float | None = None
    spread_kind: str = ""
    source: str


@cache
def _index(benchmarks: Path, outside: tuple[Path, ...]) -> dict[str, dict[str, Path]]:
    """Return paper -> table -> its file: those of `benchmarks/<paper>/`, then those in folders of plug-ins.

    Raises:
        DpbenchError: two files have the same paper and table, or a file in a folder of plug-ins cannot be read.
    """
    index: dict[str, dict[str, Path]] = {}
    for path in sorted(benchmarks.glob("*/*.yaml")):
        if path.stem != "deviations" and not path.parent.name.startswith("_"):
            index.setdefault(path.parent.name, {})[path.stem] = path
    for path in (path for folder in outside for path in sorted(folder.glob("*.yaml"))):
        values = read_yaml(path)
        if not isinstance(values, dict) or "paper" not in values or "table" not in values:
            continue  # not a table
        paper, table = str(values["paper"]), str(values["table"])
        if (other := index.setdefault(paper, {}).get(table)) is not None:
            raise DpbenchError(f"two tables are called {paper}/{table}: {other}, {path}", "rename one of them")
        index[paper][table] = path
    return index


def _tables() -> dict[str, dict[str, Path]]:
    return _index(paths.benchmarks(), tuple(plugins.folders()))


def path_of(spec: TableSpec) -> Path:
    """Return the file of a table; for an unknown table, the file in which it would be looked for."""
    return _tables().get(spec.paper, {}).get(spec.table, paths.benchmarks() / spec.paper / f"{spec.table}.yaml")


def papers() -> list[str]:
    """Return the papers that have at least one table."""
    return list(_tables())


def tables_of(paper: str) -> list[str]:
    """Return the names of a paper's tables.

    Raises:
        DpbenchError: unknown paper.
    """
    index = _tables()
    if not index:
        raise DpbenchError(f"{paths.benchmarks()}: holds no table", "work in a clone of dpbench, or set DPBENCH_ROOT to one")
    if paper not in index:
        raise unknown("paper", paper, index)
    return list(index[paper])


@cache
def _load(path: Path) -> tuple[TableSpec, frozenset[Path]]:
    """Return the table of a file, and the files of the fragments that it uses."""
    values, fragments = read_table(path)
    spec = parse(TableSpec, values, str(path))
    inside = path.is_relative_to(paths.benchmarks())
    if spec.table != path.stem or (inside and spec.paper != path.parent.name):
        raise DpbenchError(
            f"{path}: says paper {spec.paper!r}, table {spec.table!r}", "name folder and file after the paper and the table"
        )
    return spec, fragments


def fragments_of(path: Path) -> list[Path]:
    """Return the files of the fragments that a table's file uses, directly or by way of others. Raises as `load_table`."""
    return sorted(_load(path)[1])


def load_table(paper: str, table: str) -> TableSpec:
    """Read and validate `benchmarks/<paper>/<table>.yaml`.

    Raises:
        DpbenchError: unknown paper or table, malformed YAML, unknown or wrong keys.
    """
    if table not in tables_of(paper):
        raise unknown("table", f"{paper}/{table}", (f"{paper}/{t}" for t in tables_of(paper)))
    return _load(_tables()[paper][table])[0]


def load_named(name: str) -> TableSpec:
    """Load the table called `paper/table`.

    Raises:
        DpbenchError: not of this form, or as `load_table`.
    """
    paper, _, table = name.partition("/")
    if not table:
        raise DpbenchError(f"{name!r} does not name a table", "write PAPER/TABLE, such as flashdp/batch_size")
    return load_table(paper, table)


def all_tables() -> list[TableSpec]:
    """Return every table of every paper, in the order of their names."""
    return [load_table(paper, table) for paper in papers() for table in tables_of(paper)]


def published(spec: TableSpec) -> list[Published]:
    """Return the published values of a table from `benchmarks/<paper>/published/<table>.csv`, none if nobody has read any.

    The columns are the table's axes, then metric, value, unit, spread, spread_kind, source.

    Raises:
        DpbenchError: a missing column, a value that is not a number, a value without a source.
    """
    path = path_of(spec).parent / "published" / f"{spec.table}.csv"
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

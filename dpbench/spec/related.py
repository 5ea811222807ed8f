"""Read the values of other papers that are shown beside a table whose published values have not been read, never in a cell."""

from __future__ import annotations

from pydantic import Field

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.spec.models import RelatedSpec, TableSpec
from dpbench.spec.values import read_values
from dpbench.validation import Strict

_FIXED = ("metric", "method", "value", "unit", "note", "source")


class Related(Strict):
    """One file of related values, its methods side by side. rows: one text per column; an empty text is not known."""

    title: str
    says: str
    columns: list[str]
    rows: list[list[str]]
    sources: list[str] = Field(default_factory=list)


def related(spec: TableSpec) -> list[Related]:
    """Return the related values that a table names.

    Raises:
        DpbenchError: a missing file or column, or a value that is not a number or has no source.
    """
    return [_read(spec, item) for item in spec.related]


def _read(spec: TableSpec, item: RelatedSpec) -> Related:
    path = paths.benchmarks() / spec.paper / "related" / item.file
    if not path.exists():
        raise DpbenchError(f"{path}: no such file", f"correct `related` in benchmarks/{spec.paper}/{spec.table}.yaml")
    names, lines = read_values(path, _FIXED, " and labels")
    labels = [name for name in names if name not in _FIXED]
    methods = list(dict.fromkeys(line.row["method"] for line in lines))
    by_labels: dict[tuple[str, ...], dict[str, str]] = {}
    for row in (line.row for line in lines):
        key = (f"{row['metric']} ({row['unit']})", *(row[name] for name in labels))
        by_labels.setdefault(key, {})[row["method"]] = row["value"] or row["note"]
    rows = [[*key, *(values.get(method, "") for method in methods)] for key, values in by_labels.items()]
    sources = list(dict.fromkeys(line.row["source"] for line in lines))
    return Related(title=item.title, says=item.says, columns=["metric", *labels, *methods], rows=rows, sources=sources)

"""Published values of other papers that stand beside a table because its own have not been read: shown apart, never in a cell."""

from __future__ import annotations

import csv

from pydantic import Field

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.spec.models import RelatedSpec, TableSpec
from dpbench.validation import Strict

_FIXED = ("metric", "method", "value", "unit", "note", "source")


class Related(Strict):
    """One file of related values, a line each with its methods side by side. rows: texts; an empty one is not known."""

    title: str
    says: str
    columns: list[str]
    rows: list[list[str]]
    sources: list[str] = Field(default_factory=list)


def related(spec: TableSpec) -> list[Related]:
    """The related values that a table names.

    Raises:
        DpbenchError: no such file, a missing column, a value that is not a number or has no source.
    """
    return [_read(spec, item) for item in spec.related]


def _read(spec: TableSpec, item: RelatedSpec) -> Related:
    path = paths.benchmarks() / spec.paper / "related" / item.file
    if not path.exists():
        raise DpbenchError(f"{path}: no such file", f"correct `related` in benchmarks/{spec.paper}/{spec.table}.yaml")
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        names = reader.fieldnames or []
        if missing := [c for c in _FIXED if c not in names]:
            raise DpbenchError(f"{path}: column {missing[0]!r} is missing", f"the columns are {', '.join(_FIXED)} and labels")
        lines = [(reader.line_num, row) for row in reader]
    labels = [name for name in names if name not in _FIXED]
    methods = list(dict.fromkeys(row["method"] for _, row in lines))
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for number, row in lines:
        where = f"{path}: line {number}"
        if not row["source"]:
            raise DpbenchError(f"{where}: a value without a source", "name the document it was read in")
        if row["value"]:
            try:
                float(row["value"])
            except ValueError as error:
                raise DpbenchError(f"{where}: {error}", "leave a value that nobody has read empty, with a note") from error
        elif not row["note"]:
            raise DpbenchError(f"{where}: neither value nor note", "say why there is no value")
        key = (f"{row['metric']} ({row['unit']})", *(row[name] for name in labels))
        found.setdefault(key, {})[row["method"]] = row["value"] or row["note"]
    rows = [[*key, *(values.get(method, "") for method in methods)] for key, values in found.items()]
    sources = list(dict.fromkeys(row["source"] for _, row in lines))
    return Related(title=item.title, says=item.says, columns=["metric", *labels, *methods], rows=rows, sources=sources)

"""CSV files of values that somebody has read off a document: every value with its source."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpbench.errors import DpbenchError


@dataclass(frozen=True)
class Line:
    """One line of such a file. value, spread: None where the cell is empty."""

    row: dict[str, str]
    value: float | None
    spread: float | None


def read_values(path: Path, needed: Sequence[str], more: str = "") -> tuple[list[str], list[Line]]:
    """(names of the columns, lines).

    Args:
        needed: columns the file must have, `value` and `source` among them; more: said of the others in an error.

    Raises:
        DpbenchError: a missing column, a value that is not a number, a line without a source, or with neither value nor note.
    """
    found = []
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        names = list(reader.fieldnames or [])
        if missing := [c for c in needed if c not in names]:
            raise DpbenchError(f"{path}: column {missing[0]!r} is missing", f"the columns are {', '.join(needed)}{more}")
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if not row["source"]:
                raise DpbenchError(f"{where}: a value without a source", "name the document it was read in")
            if not row["value"] and not row.get("note"):
                raise DpbenchError(f"{where}: neither value nor note", "leave a value that nobody has read out, or say why")
            try:
                value, spread = (float(row[name]) if row.get(name) else None for name in ("value", "spread"))
            except ValueError as error:
                raise DpbenchError(f"{where}: {error}", "write a number, or leave out a value that nobody has read") from error
            found.append(Line(row, value, spread))
    return names, found

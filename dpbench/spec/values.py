"""Read CSV files of values that somebody has read off a document, every value with its source."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpbench.errors import DpbenchError
from dpbench.files import read_text

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_CONTENT = {"value", "spread", "spread_kind", "unit", "note", "source"}
"""Columns with the content of a cell; the other columns identify the cell."""


@dataclass(frozen=True)
class Line:
    """One line of such a file. value, spread: None where the cell is empty."""

    row: dict[str, str]
    value: float | None
    spread: float | None


def read_values(path: Path, needed: Sequence[str], more: str = "") -> tuple[list[str], list[Line]]:
    """Return (names of the columns, lines) of such a file.

    Args:
        needed: columns that the file must have, `value` and `source` among them.
        more: words for the other columns, appended to the names of the needed ones in an error.

    Raises:
        DpbenchError: not a CSV in UTF-8, a column that is missing or occurs twice, a line of another length, a value that is no
            finite number, a line without a source or with neither value nor note, or a cell that occurs twice; names the line.
    """
    text = read_text(path, hint=f"write a CSV with the columns {', '.join(needed)}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[Line] = []
    first_line_of: dict[tuple[str, ...], int] = {}
    try:
        names = next(reader, [])
        _check_columns(path, names, needed, more)
        for cells in reader:
            if not cells:
                continue
            where = f"{path}: line {reader.line_num}"
            if len(cells) != len(names):
                raise DpbenchError(
                    f"{where}: {len(cells)} fields for {len(names)} columns", "put a text with a comma into double quotes"
                )
            row = dict(zip(names, cells, strict=True))
            lines.append(_line(row, where))
            key = tuple(text for name, text in row.items() if name not in _CONTENT)
            if key in first_line_of:
                raise DpbenchError(f"{where}: the same cell as line {first_line_of[key]}", "keep one of them")
            first_line_of[key] = reader.line_num
    except csv.Error as error:
        raise DpbenchError(f"{path}: line {reader.line_num}: not CSV ({error})", "mend that line") from error
    return names, lines


def _check_columns(path: Path, names: list[str], needed: Sequence[str], more: str) -> None:
    known = f"the columns are {', '.join(needed)}{more}"
    if missing := [name for name in needed if name not in names]:
        raise DpbenchError(f"{path}: line 1: column {missing[0]!r} is missing", known)
    for number, name in enumerate(names, 1):
        if not name.strip() or name != name.strip() or name in names[: number - 1]:
            fault = "occurs twice" if name in names[: number - 1] else "is no name"
            raise DpbenchError(f"{path}: line 1: column {number}, {name[:80]!r}, {fault}", known)


def _line(row: dict[str, str], where: str) -> Line:
    if not row["source"].strip():
        raise DpbenchError(f"{where}: a value without a source", "name the document it was read in")
    if not row["value"] and not row.get("note"):
        raise DpbenchError(f"{where}: neither value nor note", "leave out a value that nobody has read, or say why it is missing")
    value, spread = (_number(row.get(name, ""), f"{where}: {name}") for name in ("value", "spread"))
    if spread is not None and (spread < 0 or value is None):
        raise DpbenchError(f"{where}: spread {spread:g}{' of no value' if value is None else ''}", "a spread is a half-width")
    return Line(row, value, spread)


def _number(text: str, where: str) -> float | None:
    """Parse a decimal number as documents print it: `float()` would also accept nan, inf and 1_000, and turn 1e999 into inf."""
    if not text:
        return None
    if _NUMBER.fullmatch(text) is None or not math.isfinite(value := float(text)):
        raise DpbenchError(f"{where}: {text[:80]!r} is not a number", "write a number, or leave out a value that nobody has read")
    return value

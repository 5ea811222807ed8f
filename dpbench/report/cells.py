"""Write CSV whose cells no spreadsheet reads as formulas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""Characters with which a formula begins in a spreadsheet; the last four are of East Asian width."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)


def cell(value: object) -> object:
    """Return a value for a CSV: a text that a spreadsheet would compute gets an apostrophe in front, all else is unchanged."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) and _NUMBER.fullmatch(value) is None:
        return f"'{value}"
    return value


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as CSV with a header; None and a missing column are an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writerow({name: cell(name) for name in columns})
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()

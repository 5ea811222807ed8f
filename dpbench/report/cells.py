"""Write CSV whose cells no spreadsheet reads as formulas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""Characters with which a formula begins in a spreadsheet; the last four are of East Asian width."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)


def cell(value: object) -> object:
    """Return a value for a CSV: a text that a spreadsheet would compute gets an apostrophe in front, all else is unchanged."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) and _NUMBER.fullmatch(value) is None:
        return f"'{value}"
    return value


def csv_text(frame: DataFrame) -> str:
    """Return a frame as CSV with a header and without its index; a missing value is an empty field."""
    cells = frame.astype(object).map(cell, na_action="ignore").rename(columns=cell)
    return cells.to_csv(index=False, lineterminator="\n")

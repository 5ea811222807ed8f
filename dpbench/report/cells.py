"""Guard the cells of CSV files against being read as formulas."""

from __future__ import annotations

import re
from typing import Any

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""Characters with which a formula begins in a spreadsheet; the last four are of East Asian width."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)


def cell(value: Any) -> Any:
    """Return a value for a CSV: a text that a spreadsheet would compute gets an apostrophe in front, all else is unchanged."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) and _NUMBER.fullmatch(value) is None:
        return f"'{value}"
    return value

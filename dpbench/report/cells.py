"""Cells of CSV files."""

from __future__ import annotations

import re
from typing import Any

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""What spreadsheets begin a formula with, the last four in East Asian width."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)


def cell(value: Any) -> Any:
    """A value for a CSV: a text that a spreadsheet would compute is quoted by an apostrophe before it, all else is as it was."""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) and _NUMBER.fullmatch(value) is None:
        return f"'{value}"
    return value

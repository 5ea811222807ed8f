"""Remarks on loaded data that are odd, but no error: the user sees them, and the record of a run keeps them.

Remarks and errors call a row by `row_name`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collecting: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


def row_name(index: int) -> str:
    """Return the name of a row: people count from 1, pandas and pyarrow from 0."""
    return f"row {index + 1} (row {index} counted from 0)"


class DataWarning(UserWarning):
    """A warning about data that can be used, but that somebody should look at."""


def remark(text: str) -> None:
    """Add a remark to the list of `collected`, once each; outside such a block it becomes a Python warning."""
    lines = _collecting.get()
    if lines is None:
        warnings.warn(text, DataWarning, stacklevel=3)
    elif text not in lines:
        lines.append(text)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that receives the remarks of the block, in their order, each once."""
    lines: list[str] = []
    token = _collecting.set(lines)
    try:
        yield lines
    finally:
        _collecting.reset(token)

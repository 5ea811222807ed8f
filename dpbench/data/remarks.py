"""Remarks on loaded data that are odd, but no error: the user sees them, and the record of a run keeps them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collecting: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


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

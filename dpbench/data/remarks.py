"""What is odd about data that were loaded, though no error: the user hears of it, and a run's record keeps it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_collecting: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


class DataWarning(UserWarning):
    """Data that can be used, and that somebody should look at."""


def remark(text: str) -> None:
    """Pass a remark on: to the list of `collected`, once each, or where there is none as a Python warning."""
    lines = _collecting.get()
    if lines is None:
        warnings.warn(text, DataWarning, stacklevel=3)
    elif text not in lines:
        lines.append(text)


@contextmanager
def collected() -> Iterator[list[str]]:
    """The remarks made inside the block, in their order, each once."""
    lines: list[str] = []
    token = _collecting.set(lines)
    try:
        yield lines
    finally:
        _collecting.reset(token)

"""Small tables of text for later processes: JSON files in the cache folder. One that cannot be used counts as empty."""

from __future__ import annotations

import contextlib
import json

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import write_atomic

_LARGEST = 64 * 2**20


def read(name: str) -> dict[str, str]:
    """Return the table that earlier processes wrote under a name; never raises."""
    path = paths.cache() / name
    try:
        if path.stat().st_size > _LARGEST:
            return {}
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in table.items() if isinstance(v, str)} if isinstance(table, dict) else {}


def add(name: str, entries: dict[str, str]) -> None:
    """Add entries to a table. Where the cache cannot be written, the next start is only slower."""
    with contextlib.suppress(DpbenchError, OSError):
        write_atomic(paths.cache() / name, json.dumps(read(name) | entries, indent=1, sort_keys=True))

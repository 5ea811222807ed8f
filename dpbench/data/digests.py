"""The sha256 of files, computed once for each process, and for large files once across processes."""

from __future__ import annotations

import re
from pathlib import Path

from dpbench.data import cache_tables
from dpbench.errors import DpbenchError
from dpbench.files import sha256_file

_STORE = "digests.json"
_known: dict[str, str] = {}


def _key(path: Path) -> str:
    """Return path, size and times. The time of change is included because tools that copy a file keep the time of its content."""
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"


def digest(path: Path, persist: bool = False) -> str:
    """Return the hex sha256 of a file, which is recognised by its path, size and time of change.

    Args:
        persist: also keep the digest in `digests.json` of the cache folder, for files that take long to read.

    Raises:
        DpbenchError: the file cannot be read.
    """
    try:
        key = _key(path)
        if key in _known:
            return _known[key]
        if persist and re.fullmatch("[0-9a-f]{64}", stored := cache_tables.read(_STORE).get(key, "")):
            return _known.setdefault(key, stored)
        sha256 = _known[key] = sha256_file(path)
    except OSError as error:
        raise DpbenchError(f"{path}: cannot be read ({error.strerror})", "see that the file is there and readable") from error
    if persist:
        cache_tables.add(_STORE, {key: sha256})
    return sha256

"""sha256 of files, each computed once: in the process, and for large files across processes too."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import sha256_file, write_atomic

_known: dict[str, str] = {}


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def _stored(path: Path) -> dict[str, str]:
    """What earlier processes left; a file that cannot be used counts as empty."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str) and len(v) == 64}


def digest(path: Path, persist: bool = False) -> str:
    """Hex sha256 of a file, known again by its path, size and time of change.

    Args:
        persist: also keep it in `digests.json` of the cache folder, for files that take long to read.

    Raises:
        DpbenchError: the file cannot be read.
    """
    try:
        key = _key(path)
        if key in _known:
            return _known[key]
        store = paths.cache() / "digests.json"
        if persist and key in (stored := _stored(store)):
            return _known.setdefault(key, stored[key])
        found = _known[key] = sha256_file(path)
    except OSError as error:
        raise DpbenchError(f"{path}: cannot be read ({error.strerror})", "see that the file is there and readable") from error
    if persist:
        with contextlib.suppress(DpbenchError):  # without it the next start is slower, no more
            write_atomic(store, json.dumps(_stored(store) | {key: found}, indent=1, sort_keys=True))
    return found

"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dpbench.errors import DpbenchError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` by a temporary file and a rename.

    Raises:
        DpbenchError: no permission, disk full, read-only file system; what was there before is untouched.
    """
    data = content.encode() if isinstance(content, str) else content

    def fill(handle: IO[bytes]) -> None:
        handle.write(data)

    write_atomic_with(path, fill)


def write_atomic_with(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """As `write_atomic`, with the content written by `fill(handle)`."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as handle:
            fill(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files only its owner can read
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_error(path: Path, error: OSError) -> DpbenchError:
    """The user's words for a failed write."""
    if error.errno == errno.ENOSPC:
        return DpbenchError(f"{path}: the disk is full", "free some space and start again; finished records are kept")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DpbenchError(f"{path}: no permission to write", "make the folder writable, or work in another clone")
    return DpbenchError(f"{path}: cannot be written ({error.strerror})", "see that the path is a usable folder")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

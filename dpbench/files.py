"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dpbench.errors import DpbenchError

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    """As `write_atomic`, with the content written by `fill(handle)`.

    What writers of the same file left behind when they were killed is removed; a file that is being written now is not.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        descriptor, temporary = _temporary_beside(path)
        with os.fdopen(descriptor, "wb") as handle:
            fill(handle)
            handle.flush()
            os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files only its owner can read
            if os.name == "posix":  # before it is closed: the lock that spares it from sweeping goes with the descriptor
                os.replace(temporary, path)
        if os.name != "posix":  # an open file cannot be renamed there, nor be swept
            os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_cache(path: Path, content: str | bytes) -> None:
    """As `write_atomic`, for what can be computed again: a cache that cannot be written costs time, not the run."""
    with contextlib.suppress(DpbenchError):
        write_atomic(path, content)


def _temporary_beside(path: Path) -> tuple[int, str]:
    """A new file in the folder of `path`, locked for as long as its writer lives."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        if _lock(descriptor, wait=True) is not False and os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # swept by another writer before it was locked


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` whose writers are dead: those whose lock is free."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]{8}")
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if pattern.fullmatch(entry.name)]
    for name in names:
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent / name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(descriptor, wait=False):
                    os.unlink(path.parent / name)
            finally:
                os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool | None:
    """Lock an open file until it is closed; False if another process holds it, None where files cannot be locked."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that there is no space left, in whatever library it was raised."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        if any(words in str(cause) for words in ("No space left on device", "Disk quota exceeded", "StorageFull")):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def full_error(place: Path | str) -> DpbenchError:
    """The user's words for a disk without space."""
    return DpbenchError(f"{place}: the disk is full", "free some space and start again; finished records are kept")


def write_error(path: Path, error: OSError) -> DpbenchError:
    """The user's words for a failed write."""
    if error.errno in _FULL:
        return full_error(path)
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

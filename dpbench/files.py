"""Write files atomically, and read bytes, text, JSON and YAML by one function each, with one kind of error."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dpbench.errors import DpbenchError
from dpbench.parsing import parse_json, parse_yaml

LARGEST = 8 << 20
"""Most bytes of a file to read, unless the caller sets another limit: tables and records have kilobytes."""
_LARGEST_YAML = 1 << 20  # bytes; the largest table has 17 kB
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # byte-order marks of UTF-8 and UTF-16

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` by a temporary file and a rename, so that the file is never incomplete.

    Raises:
        DpbenchError: no permission, disk full, read-only file system; an existing file is unchanged then.
    """
    data = content.encode() if isinstance(content, str) else content

    def fill(handle: IO[bytes]) -> None:
        handle.write(data)

    write_atomic_with(path, fill)


def write_atomic_with(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Write a file as `write_atomic` does, with the content written by `fill(handle)`.

    Temporary files that killed writers of the same file have left are removed; those that are being written are not.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        descriptor, temporary = _create_temporary(path)
        with os.fdopen(descriptor, "wb") as handle:
            fill(handle)
            handle.flush()
            os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes files only its owner can read
            if os.name == "posix":  # before it is closed: closing releases the lock that protects it from `_sweep`
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
    """Write a file as `write_atomic` does, but ignore errors: the content of a cache can be computed again."""
    with contextlib.suppress(DpbenchError):
        write_atomic(path, content)


def _create_temporary(path: Path) -> tuple[int, str]:
    """Create a new file in the folder of `path`, locked for as long as its writer lives; return its descriptor and name."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        if _lock(descriptor, wait=True) is not False and os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # removed by another writer before it was locked


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` whose writers have ended: those whose lock is free."""
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
    """Lock an open file until it is closed; return False if another process holds the lock, None where locks do not work."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, means that there is no space left, whatever library raised it."""
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
    """Return the error for a disk without space."""
    return DpbenchError(f"{place}: the disk is full", "free some space and start again; finished records are kept")


def write_error(path: Path, error: OSError) -> DpbenchError:
    """Return the error for a failed write."""
    if error.errno in _FULL:
        return full_error(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DpbenchError(f"{path}: no permission to write", "make the folder writable, or work in another clone")
    return DpbenchError(f"{path}: cannot be written ({error.strerror})", "check that the path is in a usable folder")


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Reading. The functions below read everything that people write or that another machine sends: regular files only, of limited
# size, depth and number of parts; every fault is one DpbenchError that names the file and the line.


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        DpbenchError: a folder, FIFO, socket or device.
        OSError, ValueError: it cannot be opened; `read_error` turns this into an error for users.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # O_NONBLOCK: opening a FIFO must not wait
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise DpbenchError(f"{path}: {_kind(mode)}, not a file", "give the path of a file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int = LARGEST, hint: str = "") -> bytes:
    """Return the bytes of a regular file.

    Args:
        limit: bytes; a larger file is refused, and no more than this is read of it.
        hint: a better hint than the default about a missing or unusable file.

    Raises:
        DpbenchError: missing, no permission, a folder, FIFO or device, too large, or a disk error.
    """
    try:
        with open_regular(path) as handle:
            data = handle.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise read_error(path, error, hint) from error
    if len(data) > limit:
        raise DpbenchError(f"{path}: larger than the {_size(limit)} that such a file may have", hint or "give a smaller file")
    return data


def read_text(path: Path, limit: int = LARGEST, hint: str = "") -> str:
    """Return the text of a UTF-8 file, with its line ends unchanged.

    Raises:
        DpbenchError: as `read_bytes`; a byte-order mark, or bytes that are not UTF-8: names the line.
    """
    return decoded(read_bytes(path, limit, hint), str(path))


def decoded(data: bytes, where: str) -> str:
    """Return UTF-8 bytes as text.

    Raises:
        DpbenchError: a byte-order mark, or bytes that are not UTF-8: names the line.
    """
    if data.startswith(_MARKS):
        raise DpbenchError(f"{where}: line 1 starts with a byte-order mark", "save the file as UTF-8 without one")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DpbenchError(
            f"{where}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x})", "save the file as UTF-8"
        ) from error


def read_json(path: Path, limit: int = LARGEST, hint: str = "") -> Any:
    """Return the value of a JSON file, checked by `parse_json`.

    Raises:
        DpbenchError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit, hint), str(path), hint)


def read_yaml(path: Path, hint: str = "") -> Any:
    """Return the value of a YAML file, checked by `parse_yaml`.

    Raises:
        DpbenchError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, _LARGEST_YAML, hint), str(path), hint)


_READ_FAULTS = {
    errno.ENOENT: ("no such file", "list the folder for the names of its files"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "correct the path"),
    errno.ELOOP: ("a link that leads to itself", "correct the path"),
    errno.ENXIO: ("a socket or device, not a file", "give the path of a file"),
}


def read_error(path: Path, error: OSError | ValueError, hint: str = "") -> DpbenchError:
    """Return the error for a failed read."""
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return DpbenchError(f"{path}: no permission to read", "make the file readable")
    if number in _READ_FAULTS:
        what, default_hint = _READ_FAULTS[number]
        return DpbenchError(f"{path}: {what}", hint or default_hint)
    reason = error.strerror if isinstance(error, OSError) else error
    return DpbenchError(f"{str(path)[:300]!r}: cannot be read ({reason})", hint or "check that the path is a usable file")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket or device"


def _size(limit: int) -> str:
    return f"{limit / 2**20:g} MiB" if limit >= 2**20 else f"{limit} bytes"

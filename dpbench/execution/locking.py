"""Let one process work at a time, by a lock that ends with its holder and tells those who wait which process that is."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpbench.errors import DpbenchError
from dpbench.files import write_error

BEAT = 5.0
"""Seconds between two signs of life of the process that holds a lock."""
LIMIT = 600.0
"""Seconds without a sign of life after which nobody waits for the holder any longer."""
_QUIET = 3.0  # seconds of waiting without a message
_POLL = 0.1


@contextmanager
def alone(lock: Path, what: str, limit: float = LIMIT, say: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold `lock`, a file in an existing folder; yield whether this process had to wait for another one.

    The lock is released when the process that holds it ends, in whatever way.

    Args:
        what: the locked thing, for the messages: `run 0123456789ab`.
        limit: seconds without a sign of life of the holder after which waiting ends with an error.
        say: called once with the name of the process that this one waits for; prints to standard error by default.

    Raises:
        DpbenchError: the holder is stopped or hangs, or the lock file cannot be created.
    """
    from filelock import FileLock, Timeout

    file_lock = FileLock(lock)
    holder_file = lock.with_name(lock.name + ".process")
    try:
        file_lock.acquire(timeout=0)
        waited = False
    except Timeout:
        _wait(file_lock, holder_file, what, limit, say or _print)
        waited = True
    except OSError as error:
        raise write_error(lock, error) from error
    beats = _Beats(holder_file)
    try:
        yield waited
    finally:
        beats.end()
        file_lock.release()


def alone_until_exit(lock: Path, what: str) -> None:
    """Hold `lock` from now until this process ends; further calls do nothing. Arguments and errors are those of `alone`."""
    if lock.resolve() not in _until_exit:
        stack = contextlib.ExitStack()
        stack.enter_context(alone(lock, what))
        atexit.register(stack.close)
        _until_exit.add(lock.resolve())


_until_exit: set[Path] = set()


def _wait(file_lock, holder_file: Path, what: str, limit: float, say: Callable[[str], None]) -> None:  # type: ignore[no-untyped-def]
    from filelock import Timeout

    started = last_sign = time.monotonic()
    sign, has_told = _sign(holder_file), False
    while True:
        try:
            file_lock.acquire(timeout=_POLL, poll_interval=_POLL)
            return
        except Timeout:
            pass
        except OSError as error:
            raise write_error(Path(file_lock.lock_file), error) from error
        now = time.monotonic()
        if (latest := _sign(holder_file)) != sign:
            sign, last_sign = latest, now
        if now - last_sign > limit:
            raise DpbenchError(
                f"{what}: {_name(holder_file)} holds {file_lock.lock_file} and has given no sign of life for {limit:.0f} s",
                "end that process, or let it go on, and start again",
            )
        if not has_told and now - started > _QUIET:
            say(f"{what}: waits for {_name(holder_file)}, which is working on it")
            has_told = True


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _sign(holder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = holder.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _name(holder: Path) -> str:
    """Return `process 123`, with its machine if that is another one."""
    with contextlib.suppress(OSError, ValueError):
        process, machine = holder.read_text(encoding="utf-8").split()
        return f"process {int(process)}" + (f" on {machine}" if machine != socket.gethostname() else "")
    return "another process"


class _Beats:
    """The signs of life of a holder: a file that names its process and is touched at intervals."""

    def __init__(self, holder: Path) -> None:
        self._holder, self._ended = holder, threading.Event()
        with contextlib.suppress(OSError):  # the file only informs waiting processes
            holder.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._holder)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._holder.unlink()

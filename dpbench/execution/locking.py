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
    holder = _Holder(lock.with_name(lock.name + ".process"), f"{what}: waits for", limit, say or _print)
    try:
        file_lock.acquire(threading.TIMEOUT_MAX, _POLL, cancel_check=holder.is_silent)
    except Timeout as error:
        raise DpbenchError(
            f"{what}: {holder.name()} holds {lock} and has given no sign of life for {limit:.0f} s",
            "end that process, or let it go on, and start again",
        ) from error
    except OSError as error:
        raise write_error(lock, error) from error
    try:
        with _signs_of_life(holder.file):
            yield holder.waited
    finally:
        file_lock.release()


def alone_until_exit(lock: Path, what: str) -> None:
    """Hold `lock` from now until this process ends; further calls do nothing. Arguments and errors are those of `alone`."""
    if lock.resolve() not in _until_exit:
        stack = contextlib.ExitStack()
        stack.enter_context(alone(lock, what))
        atexit.register(stack.close)
        _until_exit.add(lock.resolve())


_until_exit: set[Path] = set()


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Holder:
    """The process that holds a lock, as one that waits for it sees it: by the file that names it and is touched at intervals."""

    def __init__(self, file: Path, message: str, limit: float, say: Callable[[str], None]) -> None:
        self.file = file
        self.waited = False
        self._message, self._limit, self._say = message, limit, say
        self._started = self._changed = time.monotonic()
        self._sign: tuple[int, int] | None = None
        self._has_told = False

    def is_silent(self) -> bool:
        """Return whether the holder has given no sign of life for longer than the limit; called at every try to get the lock."""
        now, sign = time.monotonic(), None
        with contextlib.suppress(OSError):
            status = self.file.stat()
            sign = (status.st_ino, status.st_mtime_ns)
        if sign != self._sign or not self.waited:
            self.waited, self._sign, self._changed = True, sign, now
        if not self._has_told and now - self._started > _QUIET:
            self._say(f"{self._message} {self.name()}, which is working on it")
            self._has_told = True
        return now - self._changed > self._limit

    def name(self) -> str:
        """Return `process 123`, with its machine if that is another one."""
        with contextlib.suppress(OSError, ValueError):
            process, machine = self.file.read_text(encoding="utf-8").split()
            return f"process {int(process)}" + (f" on {machine}" if machine != socket.gethostname() else "")
        return "another process"


@contextmanager
def _signs_of_life(file: Path) -> Iterator[None]:
    """Name this process in `file`, which is touched at intervals and finally deleted. It only informs waiting processes."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(file)

    with contextlib.suppress(OSError):
        file.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            file.unlink()

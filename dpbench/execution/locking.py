"""One process at a time: a lock that dies with its holder, and says to whoever waits which process that is."""

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
"""Seconds between two signs of life of a holder."""
LIMIT = 600.0
"""Seconds without a sign of life after which nobody waits for a holder any longer. One that works is waited for."""
_QUIET = 3.0  # seconds of waiting that nobody needs to hear of
_POLL = 0.1


@contextmanager
def alone(lock: Path, what: str, limit: float = LIMIT, say: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold `lock`, a file in a folder that is there; yields whether another process had it before.

    The lock goes with the process that holds it, however it ends.

    Args:
        what: what is held, for the messages: `run 0123456789ab`.
        limit: seconds without a sign of life of the holder after which this gives up.
        say: is told once whom this waits for; standard error by default.

    Raises:
        DpbenchError: the holder is stopped or hangs, or the lock cannot be made here.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    holder = lock.with_name(lock.name + ".process")
    try:
        held.acquire(timeout=0)
        waited = False
    except Timeout:
        _wait(held, holder, what, limit, say or _print)
        waited = True
    except OSError as error:
        raise write_error(lock, error) from error
    beats = _Beats(holder)
    try:
        yield waited
    finally:
        beats.end()
        held.release()


def alone_until_exit(lock: Path, what: str) -> None:
    """Hold `lock` from here until this process ends, however often this is called. Arguments and errors are those of `alone`."""
    if lock.resolve() not in _until_exit:
        stack = contextlib.ExitStack()
        stack.enter_context(alone(lock, what))
        atexit.register(stack.close)
        _until_exit.add(lock.resolve())


_until_exit: set[Path] = set()


def _wait(held, holder: Path, what: str, limit: float, say: Callable[[str], None]) -> None:  # type: ignore[no-untyped-def]
    from filelock import Timeout

    begun = heard = time.monotonic()
    sign, told = _sign(holder), False
    while True:
        try:
            held.acquire(timeout=_POLL, poll_interval=_POLL)
            return
        except Timeout:
            pass
        except OSError as error:
            raise write_error(Path(held.lock_file), error) from error
        now = time.monotonic()
        if (latest := _sign(holder)) != sign:
            sign, heard = latest, now
        if now - heard > limit:
            raise DpbenchError(
                f"{what}: {_name(holder)} holds {held.lock_file} and has given no sign of life for {limit:.0f} s",
                "end that process, or let it go on, and start again",
            )
        if not told and now - begun > _QUIET:
            say(f"{what}: waits for {_name(holder)}, which is at work on it")
            told = True


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _sign(holder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = holder.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _name(holder: Path) -> str:
    """`process 123`, with its machine where that is another one."""
    with contextlib.suppress(OSError, ValueError):
        process, machine = holder.read_text(encoding="utf-8").split()
        return f"process {int(process)}" + (f" on {machine}" if machine != socket.gethostname() else "")
    return "another process"


class _Beats:
    """Says in a file who holds the lock, and touches it again and again."""

    def __init__(self, holder: Path) -> None:
        self._holder, self._ended = holder, threading.Event()
        with contextlib.suppress(OSError):  # without it a waiting process knows less
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

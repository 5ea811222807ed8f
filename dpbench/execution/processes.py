"""See that no process outlives the one it works for."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

import psutil

_POLL = 0.5  # seconds


def end_with(owner: int, end: Callable[[], None] | None = None) -> None:
    """End this process, at once and without a message, as soon as the process `owner` has ended.

    The files of a run are complete at any moment, so only time is lost. A process that does not exist counts as ended.

    Args:
        end: called instead of ending this process.
    """
    try:
        process = psutil.Process(owner)  # it remembers when it began, as its number may be that of another process later
    except psutil.NoSuchProcess:
        process = None
    threading.Thread(target=_follow, args=(process, end or _end), name="end with the owner", daemon=True).start()


def die_with(parent: int) -> None:
    """End this process when the one that started it has ended, as `end_with` does. Linux does it without a thread."""
    if sys.platform != "linux":
        end_with(parent)
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        _end()


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process has not ended; a zombie, which nobody has waited for yet, has ended."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _follow(process: psutil.Process | None, end: Callable[[], None]) -> None:
    while process is not None and is_alive(process):
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(_POLL)
    end()


def _end() -> None:
    os._exit(1)

"""See that no process outlives the one it works for."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_POLL = 0.5  # seconds


def end_with(owner: int, end: Callable[[], None] | None = None) -> None:
    """End this process, at once and without a message, as soon as the process `owner` has ended.

    The files of a run are complete at any moment, so only time is lost. A process that does not exist counts as ended.

    Args:
        end: called instead of ending this process.
    """
    watched = _Watched(owner)
    threading.Thread(target=_follow, args=(watched, end or _end), name="end with the owner", daemon=True).start()


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


def is_alive(process: int) -> bool:
    """Return whether a process exists and has not ended; a zombie, which nobody has waited for yet, has ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # a process of another user
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return not Path("/proc/self/stat").exists()


class _Watched:
    """A process, identified by a descriptor where the system has them: its number may be that of another process later."""

    def __init__(self, process: int) -> None:
        self._process, self._ends = process, None  # type: int, select.poll | None
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(process)
                self._ends = select.poll()
                self._ends.register(descriptor, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Wait up to so many seconds; return whether the process has ended."""
        if self._ends is None:
            time.sleep(seconds)
        elif self._ends.poll(1000 * seconds):
            return True
        return not is_alive(self._process)


def _follow(watched: _Watched, end: Callable[[], None]) -> None:
    while not watched.wait(_POLL):
        pass
    end()


def _end() -> None:
    os._exit(1)

"""The processes of one group on this machine, started and ended together as torchrun does. This module imports no torch.

It is not `torch.distributed.launcher.elastic_launch`, which brings back results only when all workers have ended, cannot tell a
lack of memory from another failure, and does not notice a group that hangs.

A worker is `python -m MODULE`. It finds RANK, WORLD_SIZE and LOCAL_RANK in its environment, reads one line of JSON from its
standard input (`receive`), and sends its messages as lines of JSON (`say`). It exits when its input closes, so that none outlives
the parent. A last line {"failure": {what, hint, out_of_memory, lost}} says why it is about to fail; `lost` says whether the
connection to another rank was lost.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from dpbench.errors import DpbenchError

STORE = "DPBENCH_STORE"
"""Environment variable: the file through which the workers find each other."""

Message = dict[str, Any]
"""A line of JSON between a worker and its parent."""

_TAIL = 1500  # characters of a dead worker's log that an error shows
_KILLED = (-9, 137)
_BREATH = 1.0  # seconds: when a rank dies others fail because of it, and may report that before its death is noticed


class RankError(DpbenchError):
    """A worker failed. out_of_memory says whether it ran out of memory."""

    def __init__(self, what: str, hint: str = "", out_of_memory: bool = False) -> None:
        super().__init__(what, hint)
        self.out_of_memory = out_of_memory


def run_group(module: str, request: Message, size: int, silence: float) -> Iterator[tuple[int, Message]]:
    """Yield (rank, message) until all workers have ended. No worker is left, however this ends.

    Args:
        silence: The seconds without a message from any worker after which they count as hung.

    Raises:
        RankError: A worker failed or was killed, or all hang. The others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="dpbench-") as folder:
        workers = [_Worker(module, request, rank, size, Path(folder)) for rank in range(size)]
        try:
            yield from _listen(workers, silence)
        finally:
            for worker in workers:
                worker.end()


_to_parent: list[TextIO] = []


def receive() -> Message:
    """Return a worker's request. From here on the worker ends when its parent does, and standard output goes to the log."""
    request: Message = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _to_parent.append(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)
    return request


def say(message: Message) -> None:
    """Send one message from a worker to its parent."""
    print(json.dumps(message), file=_to_parent[0], flush=True)


def _end_with_the_parent() -> None:
    sys.stdin.read()  # returns when the other end is closed
    os._exit(2)


class _Worker:
    def __init__(self, module: str, request: Message, rank: int, size: int, folder: Path) -> None:
        self.rank, self.failure = rank, {}  # type: int, Message
        self._log = folder / f"log{rank}"
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        environment[STORE] = str(folder / "store")
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died already, and its exit code says more
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def listen(self, messages: queue.Queue[tuple[_Worker, str | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            messages.put((self, line))
        messages.put((self, None))

    def hear(self, message: Message) -> bool:
        """Return whether the message reports the worker's failure, which is then kept."""
        self.failure = message.get("failure", self.failure)
        return "failure" in message

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def error(self) -> RankError:
        code = self.process.wait()
        if self.failure:
            return RankError(
                f"rank {self.rank}: {self.failure['what']}", self.failure["hint"], out_of_memory=self.failure["out_of_memory"]
            )
        if code in _KILLED:
            return RankError(f"rank {self.rank} was killed, as for want of memory", "use a smaller batch or model", True)
        return RankError(f"rank {self.rank} ended with exit code {code}: {self._log.read_text()[-_TAIL:].strip()}")


def _listen(workers: list[_Worker], silence: float) -> Iterator[tuple[int, Message]]:
    messages: queue.Queue[tuple[_Worker, str | None]] = queue.Queue()
    for worker in workers:
        threading.Thread(target=worker.listen, args=(messages,), daemon=True).start()
    running = len(workers)
    while running:
        try:
            worker, line = messages.get(timeout=silence)
        except queue.Empty:
            raise RankError(
                f"no rank has said anything for {silence:g} s: they wait for each other", "see what one of them did last"
            ) from None
        if line is not None:
            message = json.loads(line)
            if not worker.hear(message):
                yield worker.rank, message
        elif worker.process.wait() == 0:
            running -= 1
        else:
            raise _first_cause(workers, messages)


def _first_cause(workers: list[_Worker], messages: queue.Queue[tuple[_Worker, str | None]]) -> RankError:
    """Return the error of the rank that failed first, after the last messages of the others have been read."""
    time.sleep(_BREATH)
    while not messages.empty():
        worker, line = messages.get()
        worker.hear(json.loads(line) if line is not None else {})
    dead = [worker for worker in workers if worker.process.poll() not in (None, 0)]
    return min(dead, key=_complains).error()


def _complains(worker: _Worker) -> int:
    """Return 0 for a worker that was killed, and more the likelier it is that a worker failed only because it lost others."""
    if worker.process.returncode in _KILLED:
        return 0
    if worker.failure:
        return 3 if worker.failure["lost"] else 1
    return 2

"""Small runs without their imports: a process that has imported torch and forks for every run that asks.

Importing torch and transformers takes longer than many a run on frozen features. `call` hands a command to the process that
listens for this code and environment, and starts it where there is none. Each command still is a process of its own, forked from
one that has computed nothing, with the caller's folder, environment and standard streams; it ends when its caller or the
listener does, and tells the caller every few seconds that it is alive. The listener ends by itself when nobody has asked for a
while. Where there is no fork, or no answer, `call` declines and the caller works.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dpbench import paths, plugins
from dpbench.execution.processes import die_with

IDLE = 20.0
"""Seconds without a command after which the listener ends."""
_START = 30.0  # seconds until it listens, on a busy machine
_ANSWER = 5.0  # seconds until it says that it is ready: a listener that listens has nothing else to do
_ASKING = 2.0  # seconds for a caller to say all it wants
_BEAT, _SILENCE = 2.0, 30.0  # seconds between signs of life of a command, and until one without any is given up
_POLL = 0.05
_READY, _STARTED, _ALIVE, _LINE = b"ready", b"started ", b".", 2**20
_DECIDES = (
    *("OMP_", "GOMP_", "MKL_", "KMP_", "OPENBLAS_", "NUMEXPR_", "TORCH", "PYTORCH", "TRITON", "PYTHON", "LD_", "CUDA", "MALLOC_"),
    *("HF_", "TRANSFORMERS", "DPBENCH_"),
)
"""How variables begin that may be read while importing."""
_IMPORTED = (
    "torch._inductor.config",  # by torch.use_deterministic_algorithms
    *("transformers.models.bert.modeling_bert", "transformers.models.gpt2.modeling_gpt2", "transformers.masking_utils"),
    *("scipy.stats", "dp_accounting.pld.privacy_loss_distribution", "safetensors.torch", "pyarrow.parquet", "tokenizers"),
    *(
        "dpbench.execution.runner",
        "dpbench.jobs.training",
        "dpbench.jobs.fitting",
        "dpbench.methods.engines.bookkeeping",
        "dpbench.methods.engines.fused",
    ),
)


def supported() -> bool:
    """Whether this system forks and passes open files between processes, and nobody said DPBENCH_WARM=0."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds") and os.environ.get("DPBENCH_WARM") != "0"


def call(words: list[str]) -> int | None:
    """Run `python -m dpbench WORDS` as a fork of the listener, and wait for it.

    Nothing is waited for without a limit: a listener that does not answer, or a fork that gives no sign of life, is left.

    Returns:
        The exit code, 128 + n where signal n ended it; None if it has not been run to its end: the caller has to do it.
    """
    if not supported():
        return None
    try:
        folder = _private_folder()
        if folder is None:
            return None
        path = folder / f"{_key()}.sock"
        connection = _connected(path)
        if connection is None:
            return None
        with connection:
            return _asked(connection, path, words)
    except OSError:  # no space for the listener's files, no folder for temporary files, ...
        return None


def _private_folder() -> Path | None:
    """Where sockets lie; None if nobody can be sure of who has put what is there: a command could come from anybody."""
    folder = Path(tempfile.gettempdir()) / f"dpbench-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()  # a link is not followed
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if mine else None


def _asked(connection: socket.socket, path: Path, words: list[str]) -> int | None:
    """The exit code of a command given to the listener at the other end; None if none came."""
    asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    answer = _Lines(connection)
    try:
        if answer.next(_ANSWER) != _READY:
            return None  # it ended as we came
    except TimeoutError:
        _retire(path)
        return None
    # Not before: in the hands of a listener that is stopped our streams would stay open, and whoever reads them would wait.
    connection.settimeout(_SILENCE)
    try:
        socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
        started = answer.next(_SILENCE)
    except TimeoutError:
        _end_listener(connection)
        return None
    if not started.startswith(_STARTED):
        return None  # it ended as we came
    process = int(started.removeprefix(_STARTED))
    while True:
        try:
            line = answer.next(_SILENCE)
        except TimeoutError:
            with contextlib.suppress(OSError):  # stopped, or swapped out: we do its work, and nothing is done twice
                os.killpg(process, signal.SIGKILL)
            return None
        if line != _ALIVE:
            return int(line) if line else None  # without a code: the listener has ended, and its fork with it


def _end_listener(connection: socket.socket) -> None:
    """End a listener that has our streams and does nothing; only Linux says who it is."""
    if hasattr(socket, "SO_PEERCRED"):
        process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


class _Lines:
    """Lines from a socket, each within a limit of time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._buffer = connection, b""

    def next(self, seconds: float) -> bytes:
        """The next line without its end; nothing where the other end is closed.

        Raises:
            TimeoutError: it has not come.
        """
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            self._connection.settimeout(max(end - time.monotonic(), 0.001))
            try:
                part = self._connection.recv(4096)
            except ConnectionError:
                part = b""
            if not part:
                return b""
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _retire(path: Path) -> None:
    """Let nobody else ask a listener that does not answer: the next caller starts another one."""
    with contextlib.suppress(Timeout, FileNotFoundError), FileLock(path.with_suffix(".lock"), timeout=_START):
        path.unlink()


def _key() -> str:
    """Names the listener for this interpreter, this code and all variables that are read while importing."""
    files = sorted(p for p in paths.PACKAGE.rglob("*") if p.suffix in {".py", ".c", ".h", ".lock"})
    files += [path for folder in plugins.folders() for path in sorted(folder.glob("*.py"))]
    stats = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files]
    decides = sorted((k, v) for k, v in os.environ.items() if k.startswith(_DECIDES))
    return hashlib.sha256(repr((sys.executable, sys.path[1:], stats, decides)).encode()).hexdigest()[:16]


def _connected(path: Path) -> socket.socket | None:
    """A connection to the listener at `path`, which is started if there is none; None if it does not listen in time."""
    starting = path.with_suffix(".new")
    end = time.monotonic() + _START
    try:
        with FileLock(path.with_suffix(".lock"), timeout=_START):
            if (connection := _try(path)) is not None:
                return connection
            listener = None if _is_starting(starting) else _start(path)
            while time.monotonic() < end and (listener is None or listener.poll() is None):
                if (connection := _try(path)) is not None:
                    return connection
                time.sleep(_POLL)
    except Timeout:
        pass
    return None


def _start(path: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "dpbench.execution.warm", str(path)]
    with path.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _is_starting(socket_file: Path) -> bool:
    """Whether a listener is still importing; one that has not ended by twice the usual limit is not counted on."""
    try:
        is_new = time.time() - socket_file.stat().st_mtime < 2 * _START
    except OSError:
        return False
    connection = _try(socket_file) if is_new else None
    if connection is not None:
        connection.close()
    return connection is not None


def _try(path: Path) -> socket.socket | None:
    found = socket.socket(socket.AF_UNIX)
    try:
        found.connect(str(path))
    except OSError:
        found.close()
        return None
    return found


@dataclass
class _Child:
    process: int
    caller: socket.socket


def serve(path: Path, idle: float = IDLE) -> None:
    """Import what runs need, then fork for each command that comes to the socket `path`, until none has for `idle` seconds."""
    starting = path.with_suffix(".new")
    starting.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(starting))  # before the imports: a path too long for a socket fails at once
    listener.listen(64)
    file = starting.stat().st_ino
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # numpy's BLAS has threads by now, and takes care of them when its process forks
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not _is_file(starting, file):  # it took so long that another one has been started
        return
    os.replace(starting, path)  # from here on it is asked, and answers at once
    children: list[_Child] = []
    last = time.monotonic()
    while children or time.monotonic() - last < idle:
        ready, _, _ = select.select([listener, *(c.caller for c in children)], [], [], _POLL)
        if listener in ready:
            _accept(listener, children)
        for child in [c for c in children if c.caller in ready]:  # callers say nothing more: the stream has ended
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process, signal.SIGKILL)
        children = [c for c in children if not _ended(c)]
        if children or ready:
            last = time.monotonic()
    if _is_file(path, file):  # and not that of a listener which has taken our place
        path.unlink(missing_ok=True)


def _is_file(path: Path, number: int) -> bool:
    try:
        return path.stat().st_ino == number
    except OSError:
        return False


def _accept(listener: socket.socket, children: list[_Child]) -> None:
    caller, _ = listener.accept()
    text, streams = b"", []
    caller.settimeout(_ASKING)
    try:
        caller.sendall(_READY + b"\n")
        while not text.endswith(b"\n"):
            part, given, _, _ = socket.recv_fds(caller, _LINE, 3)
            if not part:
                raise OSError("the caller has gone")
            text += part
            streams += given
        asked = json.loads(text)
    except (OSError, ValueError):
        for stream in streams:
            os.close(stream)
        caller.close()
        return
    me = os.getpid()
    process = os.fork()
    if process == 0:
        die_with(me)
        listener.close()
        for other in children:
            other.caller.close()
        _become(asked, streams, caller)
    with contextlib.suppress(OSError):
        os.setpgid(process, process)
    for stream in streams:
        os.close(stream)
    children.append(_Child(process, caller))


def _become(asked: dict, streams: list[int], caller: socket.socket) -> None:
    """Be the command that was asked for; never returns."""
    code = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for at, stream in enumerate(streams):
            os.dup2(stream, at)
            os.close(stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        try:
            caller.sendall(_STARTED + b"%d\n" % os.getpid())
        except OSError:
            os._exit(code)  # the caller has gone, or does its work itself by now
        threading.Thread(target=_answer_for, args=(caller,), name="signs of life", daemon=True).start()
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv[1:] = asked["words"]
        runpy.run_module("dpbench", run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        _tell(caller, b"%d\n" % code)  # not the listener: it may have been stopped since
        os._exit(code)


def _answer_for(caller: socket.socket) -> None:
    """Give the caller signs of life; end when it has ended, whatever the listener does."""
    gone = select.poll()
    gone.register(caller, select.POLLIN)  # callers say nothing more
    while not gone.poll(1000 * _BEAT):
        _tell(caller, _ALIVE + b"\n")
    os.killpg(os.getpid(), signal.SIGKILL)


def _tell(caller: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):  # gone; or stopped, with its buffer full
        caller.send(line, socket.MSG_DONTWAIT)


def _ended(child: _Child) -> bool:
    done, status = os.waitpid(child.process, os.WNOHANG)
    if not done:
        return False
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        child.caller.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
    child.caller.close()
    return True


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

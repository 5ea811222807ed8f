"""Save small runs the time of their imports: a listener that has imported torch forks a process for each of them.

Importing torch and transformers takes longer than many runs on frozen features. `call` gives a command to the process that
listens for this code and environment, and starts that process if there is none. Each command is still a separate process, forked
from one that has computed nothing, with the caller's folder, environment and standard streams. It ends when its caller or the
listener ends, and tells the caller every few seconds that it is alive. The listener ends after some time without a command.
Without fork, or without an answer, `call` returns None and the caller runs the command itself.
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
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from dpbench import paths, plugins
from dpbench.execution.processes import die_with

IDLE = 20.0
"""Seconds without a command after which the listener ends."""
_START = 30.0  # seconds until it listens, on a busy machine
_ANSWER = 5.0  # seconds until it answers that it is ready: a listener has nothing else to do
_ASKING = 2.0  # seconds for a caller to send its command
_BEAT, _SILENCE = 2.0, 30.0  # seconds between signs of life of a command, and without any until the caller gives up
_POLL = 0.05
_READY, _STARTED, _ALIVE, _LINE = b"ready", b"started ", b".", 2**20
_DECIDES = (
    *("OMP_", "GOMP_", "MKL_", "KMP_", "OPENBLAS_", "NUMEXPR_", "TORCH", "PYTORCH", "TRITON", "PYTHON", "LD_", "CUDA", "MALLOC_"),
    *("HF_", "TRANSFORMERS", "DPBENCH_"),
)
"""Prefixes of the variables that may be read while importing."""
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
    """Return whether this system can fork and pass open files between processes, and DPBENCH_WARM is not 0."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds") and os.environ.get("DPBENCH_WARM") != "0"


def call(words: list[str]) -> int | None:
    """Run `python -m dpbench WORDS` as a fork of the listener, and wait for it.

    Every wait has a limit: this gives up a listener that does not answer and a fork without signs of life.

    Returns:
        The exit code, 128 + n where signal n ended it; None if it has not run to its end: the caller has to run it.
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
            return _run_command(connection, path, words)
    except OSError:  # no space for the listener's files, no folder for temporary files, ...
        return None


def _private_folder() -> Path | None:
    """Return the folder of the sockets; None if it is not this user's alone: another user could put a socket there."""
    folder = Path(tempfile.gettempdir()) / f"dpbench-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()  # a link is not followed
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if is_private else None


def _run_command(connection: socket.socket, path: Path, words: list[str]) -> int | None:
    """Give a command to the listener at the other end and return its exit code; None if there was none."""
    request = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
    give_up = partial(_retire, path)
    try:
        if _line(connection, _ANSWER) != _READY:
            return None  # it ended while this process connected
        give_up = partial(_end_listener, connection)
        # Streams are sent only now: a listener that is stopped would keep them open, and whoever reads them would wait.
        connection.settimeout(_SILENCE)
        socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        started = _line(connection, _SILENCE)
        if not started.startswith(_STARTED):
            return None  # it ended while this process connected
        give_up = partial(_kill, int(started.removeprefix(_STARTED)))  # stopped or swapped out, and the caller does its work now
        while (line := _line(connection, _SILENCE)) == _ALIVE:
            pass
        return int(line) if line else None  # no code: the listener has ended, and its fork with it
    except TimeoutError:
        give_up()
        return None


def _kill(command: int) -> None:
    """End the process of a command, and those that it has started."""
    with contextlib.suppress(OSError):
        os.killpg(command, signal.SIGKILL)


def _end_listener(connection: socket.socket) -> None:
    """End a listener that has this process' streams and does nothing; only Linux tells its process number."""
    if hasattr(socket, "SO_PEERCRED"):
        process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _line(connection: socket.socket, seconds: float) -> bytes:
    """Return the next line without its end, byte by byte, as more may follow it; nothing if the other end is closed.

    Raises:
        TimeoutError: nothing came for `seconds`.
    """
    connection.settimeout(seconds)
    line = b""
    while not line.endswith(b"\n"):
        try:
            part = connection.recv(1)
        except ConnectionError:
            part = b""
        if not part:
            return b""
        line += part
    return line[:-1]


def _retire(path: Path) -> None:
    """Remove the socket of a listener that does not answer: the next caller starts another one."""
    with contextlib.suppress(Timeout, FileNotFoundError), FileLock(path.with_suffix(".lock"), timeout=_START):
        path.unlink()


def _key() -> str:
    """Return the name of the listener for this interpreter, this code and all variables that are read while importing."""
    files = sorted(p for p in paths.PACKAGE.rglob("*") if p.suffix in {".py", ".yaml", ".c", ".h", ".lock"})
    files += [path for folder in plugins.folders() for path in sorted(folder.iterdir()) if path.suffix in {".py", ".yaml"}]
    stats = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files]
    decides = sorted((k, v) for k, v in os.environ.items() if k.startswith(_DECIDES))
    return hashlib.sha256(repr((sys.executable, sys.path[1:], stats, decides)).encode()).hexdigest()[:16]


def _connected(path: Path) -> socket.socket | None:
    """Connect to the listener at `path`, which is started if there is none; None if it does not listen in time."""
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
    """Return whether a listener is still importing; one that takes more than twice the usual limit does not count."""
    try:
        is_new = time.time() - socket_file.stat().st_mtime < 2 * _START
    except OSError:
        return False
    connection = _try(socket_file) if is_new else None
    if connection is not None:
        connection.close()
    return connection is not None


def _try(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


@dataclass
class _Child:
    process: int
    caller: socket.socket


def serve(path: Path, idle: float = IDLE) -> None:
    """Import what runs need, then fork for each command at the socket `path`, until none has come for `idle` seconds."""
    starting = path.with_suffix(".new")
    starting.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(starting))  # before the imports: a path too long for a socket fails at once
    listener.listen(64)
    file = starting.stat().st_ino
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # numpy's BLAS has started threads by now, and handles them when its process forks
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not _is_file(starting, file):  # the imports took so long that another listener has been started
        return
    os.replace(starting, path)  # from now on commands come, and it answers at once
    children: list[_Child] = []
    last = time.monotonic()
    while children or time.monotonic() - last < idle:
        ready, _, _ = select.select([listener, *(c.caller for c in children)], [], [], _POLL)
        if listener in ready:
            _accept(listener, children)
        for child in [c for c in children if c.caller in ready]:  # callers send nothing more: the stream has ended
            _kill(child.process)
        children = [c for c in children if not _ended(c)]
        if children or ready:
            last = time.monotonic()
    if _is_file(path, file):  # and not the socket of a listener that has replaced this one
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
            part, received, _, _ = socket.recv_fds(caller, _LINE, 3)
            if not part:
                raise OSError("the caller has gone")
            text += part
            streams += received
        request = json.loads(text)
    except (OSError, ValueError):
        for stream in streams:
            os.close(stream)
        caller.close()
        return
    listener_process = os.getpid()
    process = os.fork()
    if process == 0:
        die_with(listener_process)
        listener.close()
        for other in children:
            other.caller.close()
        _run_request(request, streams, caller)
    with contextlib.suppress(OSError):
        os.setpgid(process, process)
    for stream in streams:
        os.close(stream)
    children.append(_Child(process, caller))


def _run_request(request: dict, streams: list[int], caller: socket.socket) -> None:
    """Run the requested command in this process; never returns."""
    code = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        try:
            caller.sendall(_STARTED + b"%d\n" % os.getpid())
        except OSError:
            os._exit(code)  # the caller has gone, or does the work itself by now
        threading.Thread(target=_answer_for, args=(caller,), name="signs of life", daemon=True).start()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv[1:] = request["words"]
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
        _tell(caller, b"%d\n" % code)  # from here, as the listener may have been stopped since
        os._exit(code)


def _answer_for(caller: socket.socket) -> None:
    """Send the caller signs of life; end when it has ended, whatever the listener does."""
    hangup = select.poll()
    hangup.register(caller, select.POLLIN)  # callers send nothing more
    while not hangup.poll(1000 * _BEAT):
        _tell(caller, _ALIVE + b"\n")
    os.killpg(os.getpid(), signal.SIGKILL)


def _tell(caller: socket.socket, line: bytes) -> None:
    with contextlib.suppress(OSError):  # the caller has gone, or is stopped and its buffer is full
        caller.send(line, socket.MSG_DONTWAIT)


def _ended(child: _Child) -> bool:
    process, status = os.waitpid(child.process, os.WNOHANG)
    if not process:
        return False
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        child.caller.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
    child.caller.close()
    return True


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

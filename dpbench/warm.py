"""Small runs without their imports: a process that has imported torch and forks for every run that asks.

Importing torch and transformers takes longer than many a run on frozen features. `call` hands a command to the process that
listens for this code and environment, and starts it where there is none. Each command still is a process of its own, forked from
one that has computed nothing, with the caller's folder, environment and standard streams; it ends when its caller does.
The listener ends by itself when nobody has asked for a while. Where there is no fork, `call` declines and the caller works.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from dpbench import paths, plugins

IDLE = 20.0
"""Seconds without a command after which the listener ends."""
_START = 30.0  # seconds until it listens, on a busy machine
_POLL = 0.05
_STARTED, _LINE = b"started\n", 2**20
_DECIDES = (
    *("OMP_", "GOMP_", "MKL_", "KMP_", "OPENBLAS_", "NUMEXPR_", "TORCH", "PYTORCH", "TRITON", "PYTHON", "LD_", "CUDA", "MALLOC_"),
    *("HF_", "TRANSFORMERS", "DPBENCH_"),
)
"""How variables begin that may be read while importing."""
_IMPORTED = (
    "torch._inductor.config",  # by torch.use_deterministic_algorithms
    *("transformers.models.bert.modeling_bert", "transformers.models.gpt2.modeling_gpt2", "transformers.masking_utils"),
    *("scipy.stats", "dp_accounting.pld.privacy_loss_distribution", "safetensors.torch", "pyarrow.parquet", "tokenizers"),
    *("dpbench.runner", "dpbench.jobs.training", "dpbench.jobs.fitting", "dpbench.engines.bookkeeping", "dpbench.engines.fused"),
)


def supported() -> bool:
    """Whether this system forks and passes open files between processes, and nobody said DPBENCH_WARM=0."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds") and os.environ.get("DPBENCH_WARM") != "0"


def call(words: list[str]) -> int | None:
    """Run `python -m dpbench WORDS` as a fork of the listener, and wait for it.

    Returns:
        The exit code, 128 + n where signal n ended it; None if there can be no listener: nothing has been run then.
    """
    if not supported():
        return None
    folder = Path(tempfile.gettempdir()) / f"dpbench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        return None  # somebody else's, or open to others: a command could come from anybody
    found = _connected(folder / f"{_key()}.sock")
    if found is None:
        return None
    with found:
        asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        try:
            socket.send_fds(found, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
            answer = found.makefile("rb")
            if answer.readline() != _STARTED:
                return None
        except OSError:
            return None  # it ended as we came
        code = answer.readline()
    return int(code) if code else 128 + signal.SIGKILL


def _key() -> str:
    """Names the listener for this interpreter, this code and all variables that are read while importing."""
    files = sorted(p for p in paths.PACKAGE.rglob("*") if p.suffix in {".py", ".c", ".h", ".lock"})
    files += [path for folder in plugins.folders() for path in sorted(folder.glob("*.py"))]
    stats = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files]
    decides = sorted((k, v) for k, v in os.environ.items() if k.startswith(_DECIDES))
    return hashlib.sha256(repr((sys.executable, sys.path[1:], stats, decides)).encode()).hexdigest()[:16]


def _connected(path: Path) -> socket.socket | None:
    with FileLock(path.with_suffix(".lock")):
        if (found := _try(path)) is not None:
            return found
        words = [sys.executable, "-m", "dpbench.warm", str(path)]
        with path.with_suffix(".log").open("wb") as log:
            listener = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + _START
        while listener.poll() is None and time.monotonic() < end:
            if (found := _try(path)) is not None:
                return found
            time.sleep(_POLL)
    return None


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
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))  # before the imports: a path too long for a socket fails at once
    listener.listen(64)
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # numpy's BLAS has threads by now, and takes care of them when its process forks
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    path.unlink(missing_ok=True)


def _accept(listener: socket.socket, children: list[_Child]) -> None:
    caller, _ = listener.accept()
    asked, streams = b"", []
    caller.settimeout(10)
    try:
        while not asked.endswith(b"\n"):
            part, given, _, _ = socket.recv_fds(caller, _LINE, 3)
            if not part:
                raise OSError("the caller has gone")
            asked += part
            streams += given
        caller.sendall(_STARTED)
    except OSError:
        for stream in streams:
            os.close(stream)
        caller.close()
        return
    process = os.fork()
    if process == 0:
        listener.close()
        for other in children:
            other.caller.close()
        caller.close()
        _become(json.loads(asked), streams)
    with contextlib.suppress(OSError):
        os.setpgid(process, process)
    for stream in streams:
        os.close(stream)
    children.append(_Child(process, caller))


def _become(asked: dict, streams: list[int]) -> None:
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
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        from dpbench.cli import main

        code = main(asked["words"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _ended(child: _Child) -> bool:
    done, status = os.waitpid(child.process, os.WNOHANG)
    if not done:
        return False
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        child.caller.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
    child.caller.close()
    return True


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

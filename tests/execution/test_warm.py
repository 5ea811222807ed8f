"""Runs forked from a process that has imported torch: the same record, the caller's streams, and no child left behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dpbench.execution import warm
from dpbench.files import canonical_json
from dpbench.records.store import read_record
from dpbench.spec.expand import expand
from dpbench.spec.sources import Source
from dpbench.spec.tables import load_table

pytestmark = pytest.mark.skipif(not warm.supported(), reason="no fork here")


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    """A listener of this module's own, and an environment in which `call` finds it."""
    folder = tmp_path_factory.mktemp("warm")
    return dict(os.environ, TMPDIR=str(folder), DPBENCH_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")


def smoke_config() -> dict:
    plan = expand(load_table("automatic", "convergence"), "smoke", lambda *_: Source(kind="embedded", revision="x"))
    return next(iter(plan.runs.values())).config


def dpbench(words, environment, **options):
    return subprocess.run(
        [sys.executable, "-m", "dpbench", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **options,
    )


def forked_listener(path: Path, idle: float) -> int:
    """Serve in a fork of this process, with its patches; return the fork's process id."""
    process = os.fork()
    if process == 0:
        try:
            warm.serve(path, idle=idle)
        finally:
            os._exit(0)
    return process


def test_a_forked_run_leaves_the_record_of_a_process_of_its_own(listener, tmp_path):
    config = smoke_config()
    ends = []
    for name in ("forked", "again", "alone"):
        out = tmp_path / name
        words = ["run", canonical_json(config), "--out", str(out), "--threads", "1"]
        done = dpbench([*words, "--warm", str(int(name != "alone"))], listener)
        assert done.returncode == 0, done.stderr
        ends.append(read_record(out / "record.json"))
    assert ends[0].metrics == ends[1].metrics == ends[2].metrics
    assert ends[0].environment == ends[2].environment
    assert len(list(Path(listener["TMPDIR"]).glob("dpbench-*/*.log"))) == 1, "one listener served both"


def test_errors_and_exit_codes_come_back(listener, tmp_path):
    done = dpbench(["run", "{}", "--out", str(tmp_path), "--warm", "1"], listener)
    assert done.returncode == 2
    assert done.stderr.startswith("error: config: job: Field required")


def test_the_child_ends_with_its_caller(tmp_path, monkeypatch):
    """The command is replaced by one that never ends; the listener lives in a fork of this process."""
    path, told = tmp_path / "w.sock", tmp_path / "child"

    def forever(words):
        told.write_text(str(os.getpid()))
        time.sleep(600)

    monkeypatch.setattr("dpbench.cli.main", forever)
    monkeypatch.setattr(warm, "_IMPORTED", ())
    serving = forked_listener(path, idle=1.0)
    caller = os.fork()
    if caller == 0:
        monkeypatch.setattr(warm, "_connected", lambda _: _wait(lambda: warm._try(path)))
        warm.call(["run"])
        os._exit(0)
    child = int(_wait(lambda: told.exists() and told.read_text()))
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    _wait(lambda: not _alive(child))
    assert os.waitpid(serving, 0)[1] == 0  # and it ends when nobody asks
    assert not path.exists()


def test_a_child_that_a_signal_ends_is_told_as_a_shell_tells_it(tmp_path, monkeypatch):
    path = tmp_path / "w.sock"
    monkeypatch.setattr("dpbench.cli.main", lambda words: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(warm, "_IMPORTED", ())
    serving = forked_listener(path, idle=1.0)
    monkeypatch.setattr(warm, "_connected", lambda _: _wait(lambda: warm._try(path)))
    assert warm.call(["run"]) == 128 + signal.SIGTERM
    os.waitpid(serving, 0)


@pytest.fixture
def serving(tmp_path, monkeypatch):
    """A listener in a fork of this process whose commands never end: (its process, its socket, the file where a command says
    who it is)."""
    path, told = tmp_path / "w.sock", tmp_path / "child"

    def forever(words):
        told.write_text(str(os.getpid()))
        time.sleep(600)

    monkeypatch.setattr("dpbench.cli.main", forever)
    monkeypatch.setattr(warm, "_IMPORTED", ())
    monkeypatch.setattr(warm, "_key", lambda: "w")
    monkeypatch.setattr(warm, "_private_folder", lambda: tmp_path)
    process = forked_listener(path, idle=600)
    _wait(path.exists)
    yield process, path, told
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_stopped_listener_is_left_to_itself(serving, monkeypatch):
    process, path, told = serving
    monkeypatch.setattr(warm, "_ANSWER", 0.5)
    os.kill(process, signal.SIGSTOP)
    assert warm.call(["run"]) is None
    assert not path.exists(), "the next caller starts another one"
    os.kill(process, signal.SIGCONT)
    time.sleep(0.5)
    assert not told.exists(), "it has done what its caller does by now"


def test_a_stopped_listener_does_not_keep_our_streams_open(serving, monkeypatch):
    """Whoever reads a caller's output waits for its end."""
    process, _, _ = serving
    monkeypatch.setattr(warm, "_ANSWER", 0.5)
    os.kill(process, signal.SIGSTOP)
    read, write = os.pipe()
    caller = os.fork()
    if caller == 0:
        os.dup2(write, 1)
        os.close(write)
        warm.call(["run"])
        os._exit(0)
    os.close(write)
    os.waitpid(caller, 0)
    assert select.select([read], [], [], 10)[0]
    assert os.read(read, 1) == b""
    os.close(read)


def test_a_ready_listener_that_starts_nothing_is_ended(tmp_path, monkeypatch):
    """As one that is stopped in between: it may have our streams."""
    path = tmp_path / "w.sock"
    process = os.fork()
    if process == 0:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        connection, _ = listening.accept()
        connection.sendall(b"ready\n")
        time.sleep(600)
        os._exit(0)
    monkeypatch.setattr(warm, "_private_folder", lambda: tmp_path)
    monkeypatch.setattr(warm, "_connected", lambda _: _wait(lambda: warm._try(path)))
    monkeypatch.setattr(warm, "_SILENCE", 0.5)
    assert warm.call(["run"]) is None
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def test_a_killed_listener_ends_its_command_and_the_caller_works(serving):
    process, _, told = serving
    answers = []
    caller = threading.Thread(target=lambda: answers.append(warm.call(["run"])))
    caller.start()
    child = int(_wait(lambda: told.exists() and told.read_text()))
    os.kill(process, signal.SIGKILL)
    caller.join(30)
    assert answers == [None]
    _wait(lambda: not _alive(child))


def test_a_silent_command_is_ended_and_the_caller_works(serving, monkeypatch):
    _, _, told = serving
    monkeypatch.setattr(warm, "_SILENCE", 3.5)
    answers = []
    caller = threading.Thread(target=lambda: answers.append(warm.call(["run"])))
    caller.start()
    child = int(_wait(lambda: told.exists() and told.read_text()))
    time.sleep(4)
    assert answers == [], "it is alive, however long it takes"
    os.kill(child, signal.SIGSTOP)
    caller.join(30)
    assert answers == [None]
    _wait(lambda: not _alive(child))


def test_a_command_ends_with_its_caller_under_a_stopped_listener(serving):
    process, _, told = serving
    caller = os.fork()
    if caller == 0:
        warm.call(["run"])
        os._exit(0)
    child = int(_wait(lambda: told.exists() and told.read_text()))
    os.kill(process, signal.SIGSTOP)
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    _wait(lambda: not _alive(child))


def test_a_listener_leaves_the_socket_of_another_one(tmp_path, monkeypatch):
    path = tmp_path / "w.sock"
    monkeypatch.setattr(warm, "_IMPORTED", ())
    process = forked_listener(path, idle=1.0)
    _wait(path.exists)
    path.unlink()
    path.write_text("another's")
    assert os.waitpid(process, 0)[1] == 0
    assert path.read_text() == "another's"


@pytest.mark.parametrize("what", ["file", "dangling link", "link", "open folder", "no folder for it", "somebody else's"])
def test_what_lies_where_sockets_should_only_costs_time(what, tmp_path, monkeypatch):
    folder = tmp_path / f"dpbench-{os.getuid()}"
    if what == "file":
        folder.touch()
    elif what == "dangling link":
        folder.symlink_to(tmp_path / "nowhere")
    elif what == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    elif what == "open folder":
        folder.mkdir()
        folder.chmod(0o770)
    elif what == "somebody else's":
        folder.mkdir(mode=0o700)
        somebody = os.getuid() + 1
        monkeypatch.setattr(warm.os, "getuid", lambda: somebody)
        folder.rename(tmp_path / f"dpbench-{os.getuid()}")
    temporary = tmp_path / "nowhere" / "at all" if what == "no folder for it" else tmp_path
    monkeypatch.setattr(warm.tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setattr(warm, "_connected", lambda _: pytest.fail("asked"))
    assert warm.call(["run"]) is None
    assert not (tmp_path / "nowhere").exists()


def test_without_a_listener_the_caller_does_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "_connected", lambda _: None)
    assert warm.call(["run"]) is None
    monkeypatch.setattr(warm, "supported", lambda: False)
    assert warm.call(["run"]) is None


def test_the_name_follows_code_and_environment(monkeypatch):
    before = warm._key()
    assert warm._key() == before
    monkeypatch.setenv("DPBENCH_NATIVE", "0" if os.environ.get("DPBENCH_NATIVE") != "0" else "1")
    assert warm._key() != before


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.05)
    raise AssertionError("waited in vain")

"""One at a time; who waits knows for whom, and waits for nobody who does nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from dpbench.errors import DpbenchError
from dpbench.execution import locking
from dpbench.execution.locking import alone, alone_until_exit

HOLD = """
import sys, time
from pathlib import Path
from dpbench.execution.locking import alone
with alone(Path(sys.argv[1]), "x"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path):
    """A lock, and another process that holds it."""
    lock = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield lock, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_nobody_waits_for_a_free_lock(tmp_path):
    with alone(tmp_path / ".lock", "x") as waited:
        assert not waited
        assert (tmp_path / ".lock.process").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert not (tmp_path / ".lock.process").exists()
    with alone(tmp_path / ".lock", "x") as waited:
        assert not waited


def test_who_waits_knows_the_holder_and_outlives_its_end(held, monkeypatch):
    lock, process = held
    monkeypatch.setattr(locking, "_QUIET", 0.1)
    messages = []

    def say(text):
        messages.append(text)
        process.send_signal(signal.SIGKILL)

    with alone(lock, "run 123", say=say) as waited:
        assert waited
    assert messages == [f"run 123: waits for process {process.pid}, which is working on it"]


def test_a_stopped_holder_is_not_waited_for_without_a_limit(held):
    lock, process = held
    process.send_signal(signal.SIGSTOP)
    says = rf"run 123: process {process.pid} holds .* no sign of life for 1 s"
    with pytest.raises(DpbenchError, match=says), alone(lock, "run 123", limit=1.0):
        pass


def test_a_holder_that_says_nothing_of_itself_has_the_same_limit(tmp_path):
    lock = tmp_path / ".lock"
    with FileLock(lock), pytest.raises(DpbenchError, match="another process holds"), alone(lock, "x", limit=0.3):
        pass


def test_a_holder_at_work_is_waited_for_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.05)
    begun, order = threading.Event(), []

    def work():
        with alone(tmp_path / ".lock", "x"):
            begun.set()
            threading.Event().wait(2.0)
            order.append("first")

    first = threading.Thread(target=work)
    first.start()
    begun.wait()
    with alone(tmp_path / ".lock", "x", limit=0.6) as waited:
        order.append("second")
    first.join()
    assert waited
    assert order == ["first", "second"]


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DpbenchError, match=r"file/\.lock: cannot be written"), alone(tmp_path / "file" / ".lock", "x"):
        pass


def test_a_lock_until_exit_is_taken_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dpbench.execution.locking import *\n"
        "for _ in range(2): alone_until_exit(Path(sys.argv[1]), 'x')\nprint(Path(sys.argv[1] + '.process').exists())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "l")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert not (tmp_path / "l.process").exists()
    alone_until_exit(tmp_path / "l", "x")

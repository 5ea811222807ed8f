"""A process ends with the one it works for, however that one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from dpbench.execution.processes import is_alive

SLEEP = "import time; time.sleep(600)"
FOLLOW = """
import os, sys, time
from dpbench.execution.processes import {how}
{how}(int(sys.argv[1]) or os.getppid())
print("follows", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "0"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def follow(owner, how="end_with"):
    process = subprocess.Popen([sys.executable, "-c", FOLLOW.format(how=how), str(owner)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_process_ends_with_an_owner_that_nobody_waits_for(is_waited_for):
    owner = subprocess.Popen([sys.executable, "-c", SLEEP])
    with follow(owner.pid) as process:
        assert process.stdout.readline() == "follows\n"
        assert process.poll() is None
        owner.send_signal(signal.SIGKILL)
        if is_waited_for:
            owner.wait()
        assert process.wait(timeout=30) == 1
    owner.wait()


def test_an_owner_that_is_not_there_counts_as_ended():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with follow(gone.pid) as process:
        assert process.wait(timeout=30) == 1


@pytest.mark.parametrize("how", ["end_with", "die_with"])
def test_a_child_ends_with_its_parent(how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, FOLLOW.format(how=how)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    follower = psutil.Process(child)
    assert is_alive(follower)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([follower], timeout=30)
    assert not is_alive(follower)


def test_a_zombie_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE)
    assert is_alive(psutil.Process())
    assert is_alive(psutil.Process(1))
    ended = psutil.Process(process.pid)
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(ended)
    process.communicate()

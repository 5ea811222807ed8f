"""Starting and ending processes: whatever goes wrong, the run ends with the reason and leaves nobody behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dpbench.distributed.launch import RankError, run_group


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))


def launch(*do, silence=60.0):
    """(pids seen, error or None)."""
    pids = {}
    try:
        for rank, message in run_group("toy_worker", {"echo": 5, "do": do}, len(do), silence):
            assert message["echo"] == 5
            pids[rank] = message["pid"]
    except RankError as error:
        return pids, error
    return pids, None


def gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_all_ranks_answer_and_end():
    pids, error = launch([], [], [])
    assert sorted(pids) == [0, 1, 2]
    assert error is None
    assert gone(pids.values())


@pytest.mark.parametrize(("do", "says", "memory"), [
    ((["sleep"], ["die"]), "rank 1 ended with exit code 7", False),
    ((["sleep"], ["kill"]), "rank 1 was killed", True),
    ((["sleep"], ["say why"]), "rank 1: no room\n  hint: less", False),
    ((["lose"], ["say why"]), "rank 1: no room", False),
    ((["lose"], ["die"]), "rank 1 ended with exit code 7", False),
    ((["lose"], ["kill"]), "rank 1 was killed", True),
])  # fmt: skip
def test_a_rank_that_fails_ends_the_run_with_its_reason(do, says, memory):
    pids, error = launch(*do)
    assert says in str(error)
    assert error.out_of_memory is memory
    assert gone(pids.values())


def test_a_rank_that_dies_before_a_collective_is_named():
    pids, error = launch(["meet"], ["meet"])
    assert "rank 1 ended with exit code 7" in str(error)
    assert gone(pids.values())


def test_a_group_that_hangs_is_ended():
    pids, error = launch(["sleep"], ["sleep"], silence=3.0)
    assert "no rank has said anything for 3 s" in str(error)
    assert gone(pids.values())


def test_an_unread_group_is_ended():
    group = run_group("toy_worker", {"echo": 5, "do": [["sleep"], ["sleep"]]}, 2, 60.0)
    _, message = next(group)
    group.close()
    assert gone([message["pid"]])


def test_workers_end_when_their_parent_is_killed():
    code = (
        "from dpbench.distributed.launch import run_group\n"
        "for _, m in run_group('toy_worker', {'echo': 5, 'do': [['sleep'], ['sleep']]}, 2, 60.0): print(m['pid'], flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [json.loads(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(pids)

"""Every scenario runs once, in two gloo processes that are started together; the tests look at what they left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = [str(HERE), str(HERE.parent / "support")]  # `scenario` and `small_models`, for the processes too
sys.path[:0] = SHARED

RANKS = 2


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """All that look at the two processes go to one worker, with --dist loadgroup: each other one would start them again."""
    for item in items:
        if "ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ranks"))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """What each rank left: {module: {scenario: result}}."""
    import torch

    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), *SHARED, environment.get("PYTHONPATH", "")])
    words = [[sys.executable, str(HERE / "scenario.py"), str(folder), str(rank), str(RANKS)] for rank in range(RANKS)]
    logs = [(folder / f"log{rank}").open("w+") for rank in range(RANKS)]
    workers = [subprocess.Popen(w, env=environment, stdout=log, stderr=log) for w, log in zip(words, logs, strict=True)]
    try:
        codes = [worker.wait(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    log_tails = [(folder / f"log{rank}").read_text()[-3000:] for rank in range(RANKS)]
    assert codes == [0] * RANKS, "\n".join(log_tails)
    return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(RANKS)]

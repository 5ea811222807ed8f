"""What a Snakemake does before its first job."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from dpbench.execution import workflow


@pytest.mark.parametrize(
    ("devices", "name"),
    [(None, "dpbench.lock"), ("", "dpbench.lock"), ("0,1", "dpbench-0,1.lock"), ("GPU-a/../b", "dpbench-GPU-a____b.lock")],
)
def test_each_set_of_gpus_has_a_turn_of_its_own(devices, name, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    taken = []
    monkeypatch.setattr(workflow, "alone_until_exit", lambda lock, what: taken.append(lock))
    workflow.take_turn(tmp_path)
    assert taken == [tmp_path / name]


@pytest.mark.parametrize(
    ("forced", "option"),
    [({}, "--keep"), ({"forceall": True}, ""), ({"forcerun": {"run"}}, ""), ({"forcetargets": True}, "")],
)
def test_records_are_kept_unless_others_are_asked_for(forced, option, monkeypatch):
    monkeypatch.setenv(workflow.KEEP, "from outside")
    settings = {"forceall": False, "forcerun": set(), "forcetargets": False} | forced
    workflow.keep_records_unless_forced(SimpleNamespace(**settings))
    assert os.environ[workflow.KEEP] == option

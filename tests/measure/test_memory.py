"""Memory of every engine, each in a process of its own; what is not installed is a reason."""

from __future__ import annotations

import importlib.util

import numpy as np

from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.measure import memory, throughput
from dpbench.measure.rounds import split_missing, unmeasured
from dpbench.validation import parse


def test_missing_peers_are_reasons_not_holes(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "opacus" else real(name, *a))
    runnable, reasons = split_missing(["nonprivate", "opacus", "fused"])
    assert runnable == ["nonprivate", "fused"]
    assert reasons == {"opacus": "skipped: opacus is not installed (pip install opacus)"}
    metrics = unmeasured(throughput.UNITS, {"engine": "opacus"}, reasons["opacus"])
    assert all(m.value is None and m.note == reasons["opacus"] for m in metrics)


def test_memory_worker_measures_every_engine(tmp_path):
    worker_settings = parse(
        throughput.Settings, {"size": "tiny", "tokens": 16, "batch_size": 2, "methods": ["nonprivate", "opacus", "fused"]}, "test"
    )
    context = Context(tmp_path, 0, {}, StepLog(tmp_path / "steps.jsonl"))
    results = dict(memory.measure_memory(worker_settings, worker_settings.methods, np.zeros((2, 16), dtype=np.int64), context))
    assert list(results) == ["nonprivate", "opacus", "fused"]
    for peaks in results.values():
        assert len(set(peaks["tensors"])) == 1, "the count is exact: every step has the same peak"
    assert results["opacus"]["tensors"][0] > 1.0 * results["nonprivate"]["tensors"][0]
    assert results["fused"]["tensors"][0] < 1.1 * results["nonprivate"]["tensors"][0]

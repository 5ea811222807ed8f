"""The kernel bench: right before fast, and what it says of a wrong one."""

from __future__ import annotations

import pytest
import torch

from dpbench import cli
from dpbench.errors import DpbenchError
from dpbench.execution.runner import execute
from dpbench.kernels.linear.cpu import LinearLeaf
from dpbench.measure.kernel_bench import SHAPES, Case
from dpbench.records.store import read_record
from dpbench.spec.expand import config_of

QUICK = {"batch_size": 2, "tokens": 5, "rounds": 2, "milliseconds": 0.1}


def test_a_record_of_every_small_kernel(tmp_path):
    record = execute(config_of("kernel_bench", QUICK), tmp_path, quiet=True)
    metrics = {(m.labels["op"], m.name): m for m in record.metrics}
    assert {op for op, _ in metrics} == {"linear", "layernorm", "rmsnorm", "embedding"}
    for case in SHAPES["small"]:
        assert metrics[case.op, "error of sums"].value < 1e-5
        clock = metrics[case.op, "time"]
        assert len(clock.rounds) == 2
        assert clock.low <= clock.value <= clock.high
        moved, flops = case.work(2, 5, 4)
        assert metrics[case.op, "bandwidth"].rounds == pytest.approx([moved / ms / 1e6 for ms in clock.rounds])
        assert metrics[case.op, "rate"].rounds == pytest.approx([flops / ms / 1e6 for ms in clock.rounds])
    assert record.warnings == []


def test_a_wrong_kernel_is_reported_and_not_timed(tmp_path, monkeypatch):
    right = LinearLeaf.clip_into

    def wrong(self, use, factor, into):
        norms = right(self, use, factor, into)
        into["weight"][0, 0] += 1
        return norms

    monkeypatch.setattr(LinearLeaf, "clip_into", wrong)
    record = execute(config_of("kernel_bench", QUICK), tmp_path, quiet=True)
    clocks = {m.labels["op"]: m for m in record.metrics if m.name == "time"}
    assert clocks["linear"].value is None
    assert "wrong by" in clocks["linear"].note
    assert clocks["layernorm"].value > 0
    assert len(record.warnings) == 1
    assert "linear 96x160 by torch" in record.warnings[0]


def test_the_least_work_of_a_linear_layer():
    assert Case("linear", (3, 5)).work(2, 7, 2) == (14 * 8 * 2 + 4 * 15, 2 * 14 * 15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_what_cannot_run_says_so(tmp_path):
    for settings, match in (
        ({"kernels": ["triton"]}, "triton cannot run on cpu"),
        ({"device": "cuda"}, "CUDA device"),
        ({"kernels": ["native"], "dtype": "bfloat16"}, "native cannot run in bfloat16"),
    ):
        with pytest.raises(DpbenchError, match=match):
            execute(config_of("kernel_bench", settings), tmp_path, quiet=True)


def test_the_command_writes_a_record(tmp_path, capsys):
    words = ["bench", "kernels", "--rounds", "1", "--tokens", "4", "--batch-size", "2", "--out", str(tmp_path), "--quiet"]
    assert cli.main(words) == 0
    assert "embedding  500x96" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert read_record(folder / "record.json").run == folder.name

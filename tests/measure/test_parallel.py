"""The job `parallel`: what it refuses, and one run of it for real."""

from __future__ import annotations

import types

import pytest
import torch

from dpbench.distributed.launch import RankError
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.study import study_at
from dpbench.measure import parallel
from dpbench.measure.ranks import parts_of, whole_model
from dpbench.models.registry import language_model
from dpbench.models.seeded import materialise
from dpbench.validation import parse

BASE = {"mode": "ddp", "processes": 2, "size": "tiny", "tokens": 16, "batch_size": 4, "methods": ["nonprivate", "fused"]}


def settings(**over):
    return parse(parallel.Settings, BASE | over, "here")


@pytest.mark.parametrize(("over", "says"), [
    ({"batch_size": 5}, "batch_size 5 is not divisible by 2 processes"),
    ({"micro_batch": 3}, "micro_batch 3 does not divide the 2 examples"),
    ({"mode": "gpipe", "micro_batch": 3}, "micro_batch 3 does not divide the 4 examples"),
    ({"mode": "1f1b", "micro_batch": 4}, "wants as many micro-batches"),
    ({"mode": "tensor"}, "mode"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


@pytest.mark.parametrize(("over", "says"), [
    ({"methods": ["opacus"]}, "engine 'opacus' does not run as replicas"),
    ({"mode": "fsdp", "methods": ["ghost"]}, "engine 'ghost' does not run as shards"),
    ({"mode": "gpipe", "methods": ["ghost"]}, "engine 'ghost' does not run as stages"),
    ({"mode": "gpipe", "processes": 4}, "4 stages for 2 blocks"),
])  # fmt: skip
def test_check_refuses_what_would_not_run(over, says):
    with pytest.raises(DpbenchError, match=says):
        parallel.check(settings(**over), {})


def test_fewer_gpus_than_processes_is_said_before_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DpbenchError, match="2 processes want a GPU each, this machine has 1"):
        parallel.run(settings(device="cuda"), types.SimpleNamespace(sources={}))


def test_a_pipeline_measures_per_layer_clipping():
    assert settings(mode="gpipe").mechanism("bookkeeping").clipping.scope == "per_layer"
    assert settings().mechanism("bookkeeping").clipping.scope == "flat"
    assert settings().mechanism("nonprivate").clipping is None


@pytest.mark.parametrize("size", ["tiny", "llama_tiny"])
def test_stages_built_alone_have_the_models_weights_and_buffers(size):
    """A stage of 13 billion parameters is made without the other stages; buffers are no draw and must be the model's."""
    meta = whole_model(settings(size=size, mode="gpipe"))
    assert all(p.is_meta for p in meta.parameters())
    full_model = language_model(size)
    for name, buffer in full_model.named_buffers():
        assert torch.equal(dict(meta.named_buffers())[name], buffer)
    x = torch.randint(0, 512, (2, 16))
    for number, part in enumerate(parts_of(settings(size=size, mode="gpipe"), meta)):
        materialise(part, torch.device("cpu"), seed=number)
        weights = dict(part.named_parameters())
        assert all(torch.isfinite(p).all() for p in weights.values())
        assert {float(p.detach().std()) > 0.01 for p in weights.values() if p.dim() > 1} == {True}
        x = part(x)
    assert torch.isfinite(x).all()


class Steps:
    def __init__(self):
        self.rows = []

    def write(self, **row):
        self.rows.append(row)


def context(tmp_path):
    from dpbench.data import registry as datasets

    source = datasets.resolve("wikitext2", "embedded")
    return Context(tmp_path, 0, {"dataset:wikitext2": source}, Steps(), threads=2)


def test_a_run_measures_every_engine_in_turn(tmp_path):
    job_context = context(tmp_path)
    outcome = parallel.run(settings(mode="fsdp", rounds=2, steps=1), job_context)
    values = {(m.name, m.labels["engine"]): m for m in outcome.metrics}
    for engine in ("nonprivate", "fused"):
        assert len(values["throughput", engine].rounds) == 2
        assert values["peak_memory", engine].value > 0
    assert values["memory_ratio", "fused"].value < 1.5  # a rank keeps half of everything, whole sums only a layer at a time
    assert [row["engine"] for row in job_context.steps.rows] == ["nonprivate", "fused", "fused", "nonprivate"]
    assert outcome.facts["threads_of_a_process"] == 1


def test_an_engine_without_room_is_left_out_of_a_second_start(tmp_path, monkeypatch):
    launches = []

    def run_group(module, request, size, silence):
        launches.append(request["engines"])
        for engine in request["engines"]:
            if engine == "nonprivate":
                raise RankError("rank 1 was killed, as for want of memory", out_of_memory=True)
            yield from ((rank, {"engine": engine, "peaks": {"tensors": [1.0, 2.0 + rank], "process": 0.0}}) for rank in range(2))
        yield 0, {"engine": "fused", "seconds": 0.5}

    monkeypatch.setattr("dpbench.distributed.launch.run_group", run_group)
    outcome = parallel.run(settings(rounds=1), context(tmp_path))
    assert launches == [["nonprivate", "fused"], ["fused"]]
    values = {(m.name, m.labels["engine"]): m for m in outcome.metrics}
    assert values["throughput", "nonprivate"].value is None
    assert "OOM" in values["throughput", "nonprivate"].note
    assert values["peak_memory", "fused"].rounds == [1.0 / 2**20, 3.0 / 2**20]  # of the rank that needs the most
    assert values["throughput", "fused"].value == 4 * 16 / 0.5


@pytest.mark.parametrize("table", ["data_parallel", "pipeline_parallel"])
@pytest.mark.parametrize("tier", ["smoke", "laptop", "overnight", "gpu", "paper"])
def test_a_weight_of_one_moves_in_the_first_step(table, tier):
    """AdamW's first step is of the learning rate's size; a norm's weight that it does not move stops a private run."""
    for run in study_at(tier, [f"flashdp/{table}"], "test").runs.values():
        run_settings = run.config["settings"]
        one = torch.ones((), dtype=getattr(torch, run_settings["dtype"]))
        assert one - run_settings["learning_rate"] != one
        assert one + run_settings["learning_rate"] != one

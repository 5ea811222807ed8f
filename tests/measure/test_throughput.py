"""Timed steps: what a step does, not how fast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpbench.errors import DpbenchError
from dpbench.measure import throughput
from dpbench.measure.bench import Bench
from dpbench.validation import parse

IDS = np.random.default_rng(0).integers(0, 64, (6, 8))


def bench(**values):
    settings = throughput.Settings(size="tiny", tokens=8, batch_size=6, methods=["fused"], noise_multiplier=0.0, **values)
    return Bench(settings, IDS, seed=0)


def gradient(prepared_bench, engine="fused"):
    """Released by one step."""
    handle, seen = prepared_bench.attach(engine), []
    hook = prepared_bench.optimizer.register_step_post_hook(
        lambda *_: seen.extend(p.grad.clone() for p in prepared_bench.model.parameters())
    )
    prepared_bench.step(handle)
    hook.remove()
    handle.detach()
    return torch.cat([g.double().flatten() for g in seen])


@pytest.mark.parametrize("engine", ["nonprivate", "fused", "ghost", "opacus", "opacus_ghost"])
def test_micro_batches_make_the_same_step(engine):
    whole_batch, parts = gradient(bench(), engine), gradient(bench(micro_batch=4), engine)
    assert float((whole_batch - parts).norm() / whole_batch.norm()) < 1e-5
    assert [len(b["input_ids"]) for b in bench(micro_batch=4).batches] == [4, 2]


@pytest.mark.parametrize("engine", ["nonprivate", "fused"])
def test_amp_multiplies_in_bfloat16_and_keeps_float32_weights(engine):
    exact, half = gradient(bench(), engine), gradient(bench(dtype="amp"), engine)
    assert 1e-6 < float((exact - half).norm() / exact.norm()) < 5e-2
    assert {p.dtype for p in bench(dtype="amp").model.parameters()} == {torch.float32}
    assert {p.dtype for p in bench(dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_a_micro_batch_larger_than_the_batch_is_refused():
    values = {"size": "tiny", "tokens": 8, "batch_size": 2, "methods": ["fused"], "micro_batch": 3}
    with pytest.raises(DpbenchError, match="micro_batch 3 is more than batch_size 2"):
        parse(throughput.Settings, values, "here")


def test_an_option_that_is_not_given_is_not_part_of_a_runs_name():
    settings = throughput.Settings(size="tiny", tokens=8, batch_size=2, methods=["fused"])
    assert "micro_batch" not in settings.model_dump(mode="json")


def test_the_choice_of_kernels_names_a_run_only_where_it_is_made():
    from dpbench.measure.throughput import Settings

    base_settings = {"size": "tiny", "tokens": 4, "batch_size": 2, "methods": ["nonprivate", "fused"]}
    assert "kernels" not in Settings(**base_settings).model_dump(mode="json")
    assert Settings(**base_settings, kernels="triton").model_dump(mode="json")["kernels"] == "triton"


def test_two_engines_may_go_on_in_turn_without_the_others():
    base_settings = {
        "size": "tiny",
        "tokens": 4,
        "batch_size": 2,
        "methods": ["nonprivate", "mezo", "dpzero"],
        "rounds": 2,
        "steps": 1,
    }
    run_settings = throughput.Settings(**base_settings, closer={"methods": ["dpzero", "mezo"], "rounds": 3})
    common = [(0, ["nonprivate", "mezo", "dpzero"]), (1, ["mezo", "dpzero", "nonprivate"])]
    assert list(run_settings.turns(run_settings.methods)) == [
        *common,
        (2, ["mezo", "dpzero"]),
        (3, ["dpzero", "mezo"]),
        (4, ["mezo", "dpzero"]),
    ]
    assert list(throughput.Settings(**base_settings).turns(run_settings.methods)) == common
    assert list(run_settings.turns(["nonprivate"])) == [(0, ["nonprivate"]), (1, ["nonprivate"]), (2, []), (3, []), (4, [])], (
        "others OOM"
    )
    assert [run_settings.mechanism(engine).steps for engine in ("mezo", "dpzero")] == [10, 10]
    assert run_settings.rounds_of("nonprivate") == 2
    with pytest.raises(ValueError, match="closer: 'ghost' is not one of methods"):
        throughput.Settings(**base_settings, closer={"methods": ["ghost", "mezo"], "rounds": 3})


def test_an_engine_out_of_memory_is_OOM_and_the_others_go_on(tmp_path, monkeypatch):
    from dpbench.execution.contract import Context
    from dpbench.execution.tracking import StepLog
    from dpbench.measure import memory

    run_settings = throughput.Settings(
        size="tiny", tokens=8, batch_size=2, methods=["nonprivate", "ghost", "fused"], rounds=3, steps=1
    )
    ids = np.zeros((2, 8), dtype=np.int64)
    peaks = {"tensors": [1.0, 1.0], "process": 0.0}
    engine_peaks = [
        ("nonprivate", peaks),
        ("ghost", memory.out_of_memory(run_settings, "its process was ended")),
        ("fused", peaks),
    ]
    monkeypatch.setattr(throughput, "measure_memory", lambda *_: iter(engine_peaks))
    monkeypatch.setattr(throughput, "batch_ids", lambda *_: (ids, {}))
    calls = []

    def timed(_bench, engine):
        calls.append(engine)
        if engine == "fused" and calls.count("fused") == 2:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return 1.0

    monkeypatch.setattr(Bench, "timed", timed)
    context = Context(tmp_path, 0, {"dataset:wikitext2": None}, StepLog(tmp_path / "steps.jsonl"))
    metrics = {(m.name, m.labels["engine"]): m for m in throughput.run(run_settings, context).metrics}
    assert metrics["throughput", "nonprivate"].rounds == [16.0, 16.0, 16.0]
    for engine, why in (("ghost", "its process was ended"), ("fused", "tried to allocate 2 GiB")):
        metric = metrics["throughput", engine]
        assert (metric.value, metric.text) == (None, "OOM")
        assert metric.note == f"OOM: 2 examples of 8 tokens ({why})"
    assert calls.count("fused") == 2  # it is not tried again


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    from dpbench.measure.memory import is_out_of_memory

    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert not is_out_of_memory(RuntimeError("expected a tensor"))


@pytest.mark.parametrize("tier", ["gpu", "paper"])
def test_every_bfloat16_run_has_a_rate_that_moves_a_weight_of_1(tier):
    """Else the guard against tensors that are not trained stops every private engine: 1 - 1e-4 is 1 in bfloat16."""
    from dpbench.spec.expand import expand
    from dpbench.spec.sources import Source
    from dpbench.spec.tables import all_tables

    seen = 0
    for spec in all_tables():
        if spec.job not in ("throughput", "parallel"):
            continue
        for run in expand(spec, tier, lambda *_: Source(kind="embedded", revision="x")).runs.values():
            if run.config["settings"]["dtype"] == "bfloat16":
                seen += 1
                one = torch.ones((), dtype=torch.bfloat16)
                assert one - run.config["settings"]["learning_rate"] != one, f"{spec.paper}/{spec.table}"
    assert seen > 20


def test_a_private_step_in_bfloat16_goes_through_at_that_rate():
    settings = throughput.Settings(size="tiny", tokens=8, batch_size=6, methods=["fused"], dtype="bfloat16", learning_rate=5e-3)
    bfloat_bench = Bench(settings, IDS, seed=0)
    bfloat_bench.step(bfloat_bench.attach("fused"))
    too_small = Bench(settings.model_copy(update={"learning_rate": 1e-4}), IDS, seed=0)
    handle = too_small.attach("fused")
    with pytest.raises(DpbenchError, match="has not moved"):
        too_small.step(handle)

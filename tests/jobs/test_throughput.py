"""Timed steps: what a step does, not how fast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpbench.errors import DpbenchError
from dpbench.jobs import throughput
from dpbench.validation import parse

IDS = np.random.default_rng(0).integers(0, 64, (6, 8))


def bench(**values):
    settings = throughput.Settings(size="tiny", tokens=8, batch_size=6, engines=["fused"], noise_multiplier=0.0, **values)
    return throughput.Bench(settings, IDS, seed=0)


def gradient(made, engine="fused"):
    """Released by one step."""
    handle, seen = made.attach(engine), []
    hook = made.optimizer.register_step_post_hook(lambda *_: seen.extend(p.grad.clone() for p in made.model.parameters()))
    made.step(handle)
    hook.remove()
    handle.detach()
    return torch.cat([g.double().flatten() for g in seen])


@pytest.mark.parametrize("engine", ["nonprivate", "fused", "ghost", "opacus", "opacus_ghost"])
def test_micro_batches_make_the_same_step(engine):
    whole, parts = gradient(bench(), engine), gradient(bench(micro_batch=4), engine)
    assert float((whole - parts).norm() / whole.norm()) < 1e-5
    assert [len(b["input_ids"]) for b in bench(micro_batch=4).batches] == [4, 2]


@pytest.mark.parametrize("engine", ["nonprivate", "fused"])
def test_amp_multiplies_in_bfloat16_and_keeps_float32_weights(engine):
    exact, half = gradient(bench(), engine), gradient(bench(dtype="amp"), engine)
    assert 1e-6 < float((exact - half).norm() / exact.norm()) < 5e-2
    assert {p.dtype for p in bench(dtype="amp").model.parameters()} == {torch.float32}
    assert {p.dtype for p in bench(dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_a_micro_batch_larger_than_the_batch_is_refused():
    values = {"size": "tiny", "tokens": 8, "batch_size": 2, "engines": ["fused"], "micro_batch": 3}
    with pytest.raises(DpbenchError, match="micro_batch 3 is more than batch_size 2"):
        parse(throughput.Settings, values, "here")


def test_an_option_that_is_not_given_is_not_part_of_a_runs_name():
    settings = throughput.Settings(size="tiny", tokens=8, batch_size=2, engines=["fused"])
    assert "micro_batch" not in settings.model_dump(mode="json")


def test_the_choice_of_kernels_names_a_run_only_where_it_is_made():
    from dpbench.jobs.throughput import Settings

    given = {"size": "tiny", "tokens": 4, "batch_size": 2, "engines": ["nonprivate", "fused"]}
    assert "kernels" not in Settings(**given).model_dump(mode="json")
    assert Settings(**given, kernels="triton").model_dump(mode="json")["kernels"] == "triton"

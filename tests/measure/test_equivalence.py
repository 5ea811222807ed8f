"""The equivalence job: identities hold to rounding, the wrong rule does not, and unclipped examples void Abadi's."""

from __future__ import annotations

import pytest
import torch

from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.measure import equivalence as job
from dpbench.validation import parse

BASE = {
    "function": "auto_s",
    "against": "auto_s",
    "bound": 0.1,
    "optimizers": ["momentum", "adamw_scaled"],
    "rules": ["paper", "other"],
    "engines": ["fused"],
    "precisions": ["float64"],
    "steps": 30,
}
ABADI = {"function": "auto_v", "against": "abadi", "bound": 0.01, "all_clipped": True}


def metrics_of(tmp_path, **over):
    settings = parse(job.Settings, BASE | over, "test")
    metrics = job.run(settings, Context(tmp_path, 0, {}, StepLog(tmp_path / "steps.jsonl"))).metrics
    return {(m.name, m.labels["optimizer"], m.labels["rule"]): m for m in metrics}


@pytest.mark.parametrize("over", [{}, {"function": "auto_v", "against": "auto_v"}, ABADI])
def test_the_papers_rule_alone_agrees_to_rounding(over, tmp_path):
    """fp64 keeps 16 digits; 30 steps of a small model lose few of them."""
    metrics = metrics_of(tmp_path, **over)
    for optimizer in BASE["optimizers"]:
        assert metrics["agreement", optimizer, "paper"].value > 12
        assert metrics["agreement", optimizer, "other"].value < 1
        assert metrics["moved", optimizer, "paper"].value > 0.1
    assert all(m.kind == "counted" for m in metrics.values())


def test_adamws_own_epsilon_is_all_that_is_left(tmp_path):
    metrics = metrics_of(tmp_path, optimizers=["adamw"])
    assert 2 < metrics["agreement", "adamw", "paper"].value < 8
    small = metrics_of(tmp_path, optimizers=["adamw"], epsilon=1e-14)
    assert small["agreement", "adamw", "paper"].value > metrics["agreement", "adamw", "paper"].value + 4


def test_an_identity_of_clipped_examples_is_not_judged_on_others(tmp_path):
    metrics = metrics_of(tmp_path, **ABADI | {"bound": 3.0}, optimizers=["momentum"])
    momentum_agreement = metrics["agreement", "momentum", "paper"]
    assert momentum_agreement.value is None
    assert "not all" in momentum_agreement.note


def test_equal_weights_agree_in_all_digits_a_moved_one_counts():
    one = [torch.tensor([1.0, -2.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    other = [one[0] + torch.tensor([0.0, 2e-6], dtype=torch.float64), one[1]]
    assert job.digits(one, one) == 16
    assert job.digits(one, other) == pytest.approx(6, abs=1e-9)


def test_an_engine_that_clips_nothing_is_refused():
    with pytest.raises(DpbenchError, match="engine nonprivate clips nothing"):
        parse(job.Settings, BASE | {"engines": ["nonprivate"]}, "test")

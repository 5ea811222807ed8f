"""The learning rate that each step is made with, as its run logs it."""

from __future__ import annotations

import json
import math

import pytest
from job_runs import CASES, run

from dpbench.methods.zeroth.trainer import ZerothOrder

STEPS = 6


def lines_of(folder, name="text", **over):
    run(CASES[name], folder, steps=STEPS, **over)
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def rates(folder, name="text", **over):
    return [line["learning_rate"] for line in lines_of(folder, name, **over)]


@pytest.mark.parametrize("name", ["text", "zeroth"])
def test_a_constant_rate_stays(name, tmp_path):
    largest = CASES[name].parsed().optimizer.learning_rate
    assert rates(tmp_path, name) == [largest] * STEPS


def test_a_cosine_falls_to_the_last_step(tmp_path):
    settings = CASES["language_model"].parsed().optimizer
    largest, lowest = settings.learning_rate, settings.min_learning_rate
    expected = [lowest + (largest - lowest) * (1 + math.cos(math.pi * step / (STEPS - 1))) / 2 for step in range(STEPS)]
    assert rates(tmp_path, "language_model") == pytest.approx(expected)


@pytest.mark.parametrize("name", ["text", "zeroth"])
def test_a_linear_rate_falls_to_the_last_step(name, tmp_path):
    largest = CASES[name].parsed().optimizer.learning_rate
    expected = [largest * (1 - step / STEPS) for step in range(STEPS)]
    assert rates(tmp_path, name, optimizer={"schedule": "linear"}) == pytest.approx(expected, rel=1e-12)


def test_a_zeroth_order_method_steps_with_the_logged_rate(tmp_path, monkeypatch):
    """The optimizer's rate is the method's own, step after step."""
    seen = []
    step = ZerothOrder.step

    def spied(order, *batches):
        seen.append(order.rate)
        return step(order, *batches)

    monkeypatch.setattr(ZerothOrder, "step", spied)
    assert rates(tmp_path, "zeroth", optimizer={"schedule": "linear"}) == seen


def test_by_bound_keeps_the_product_of_rate_and_bound(tmp_path):
    over = {"clipping": {"adaptive": {"quantile": 0.5, "rate": 1.0}}, "optimizer": {"schedule": "linear", "by_bound": True}}
    lines = lines_of(tmp_path, **over)
    bounds = [math.hypot(*line["thresholds"]) for line in lines]
    assert max(bounds) > 1.05 * min(bounds), "the bound moves"
    products = [line["learning_rate"] * bound / (1 - line["step"] / STEPS) for line, bound in zip(lines, bounds, strict=True)]
    assert products == pytest.approx([products[0]] * STEPS, rel=1e-9)

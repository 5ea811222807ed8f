"""The convergence job: AUTO-V stands still between its examples, AUTO-S goes down as the theory says."""

from __future__ import annotations

import pytest

from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.measure import convergence as job
from dpbench.validation import parse


def settings(**over):
    return parse(job.Settings, {"function": "auto_s", "steps": [64], "chains": 256} | over, "test")


def test_auto_v_without_noise_does_not_move():
    start = job.START * 0.05
    assert job.least_gradient(settings(function="auto_v"), 256, 0) == pytest.approx(start, rel=1e-12)
    assert job.least_gradient(settings(function="auto_s"), 256, 0) < 0.01 * start


def test_one_step_of_auto_s_is_its_formula():
    w, r, gamma = 0.045, 0.05, 0.01
    near, far = w - r, w + r
    step = near / (abs(near) + gamma) / 2 + far / (far + gamma) / 2
    assert job.least_gradient(settings(rate=0.01), 1, 0) == pytest.approx(w - 0.01 * step, rel=1e-12)


def test_auto_s_under_noise_goes_down_as_the_fourth_root():
    """16 times the steps: T^-1/4 gives 0.5. The mean of 256 |w| has a relative error of 0.6 / 16 = 4 %, its minimum less."""
    noisy_settings = settings(noise_std=0.05)
    ratio = job.least_gradient(noisy_settings, 4096, 0) / job.least_gradient(noisy_settings, 256, 0)
    assert 0.4 < ratio < 0.6


def test_auto_v_under_noise_stalls():
    noisy_settings = settings(function="auto_v", noise_std=0.05)
    assert job.least_gradient(noisy_settings, 4096, 0) > 0.8 * job.least_gradient(noisy_settings, 256, 0)


def test_every_length_is_a_metric_of_its_own(tmp_path):
    done = job.run(settings(steps=["16", "64"]), Context(tmp_path, 0, {}, StepLog(tmp_path / "steps.jsonl")))
    assert [m.labels for m in done.metrics] == [{"steps": "16"}, {"steps": "64"}]
    assert done.privacy is None

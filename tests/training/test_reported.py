"""What a record says was reached is what the last step reached, and not the best of a curve that private rows may have shaped."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from job_runs import CASES, run, task_of

from dpbench.spec.expand import merge
from dpbench.tasks.image_classification.task import ImageTask
from dpbench.tasks.language_modeling.task import LanguageModelingTask
from dpbench.tasks.prompt_completion.task import PromptTask
from dpbench.training import trainer
from dpbench.training.callbacks import LearningCurve

SCRIPT = [0.40, 0.90, 0.70, 0.30, 0.60]  # the best is neither the first nor the last


def scripted(values):
    endless = itertools.cycle(values)
    return lambda *_: next(endless)


def metrics(outcome):
    return {m.name: m.value for m in outcome.metrics}


@pytest.mark.parametrize("name", ["features", "text", "zeroth", "compress", "drop", "prune"])
def test_the_reported_accuracy_is_the_last_of_the_curve(name, tmp_path, monkeypatch):
    case = CASES[name]
    monkeypatch.setattr(case.task, "accuracy", scripted([(value, 20) for value in SCRIPT]))
    outcome = run(case, tmp_path)
    curve = [accuracy for _, accuracy in outcome.facts["curve"]]
    assert len(curve) > 2
    assert curve == [100 * value for _, value in zip(curve, itertools.cycle(SCRIPT), strict=False)]
    assert metrics(outcome)["accuracy"] == curve[-1] < max(curve)
    assert outcome.facts["curve"][-1][0] == case.settings["steps"]
    if "gained" in metrics(outcome):
        assert metrics(outcome)["gained"] == pytest.approx(curve[-1] - curve[0])


def test_a_curve_evaluates_no_model_but_the_one_at_hand(tmp_path):
    """The accuracy that is reported is that of the weights the job leaves."""
    task = task_of(CASES["features"], tmp_path)
    curve = LearningCurve(task.model, task.evaluate, 15)
    curve.evaluate(4)
    assert curve.points == [[4, 100 * task.accuracy()[0]]]


@pytest.mark.parametrize("name", ["prompted", "prompted_zeroth"])
def test_the_reported_scores_of_prompts_are_the_last(name, tmp_path, monkeypatch):
    values = scripted([{"accuracy": 100 * value, "loss": 1 - value} for value in SCRIPT])
    monkeypatch.setattr(PromptTask, "evaluate", values)
    outcome = run(CASES[name], tmp_path)
    curve = [accuracy for _, accuracy in outcome.facts["curve"]]
    assert metrics(outcome)["accuracy"] == curve[-1] < max(curve)
    assert metrics(outcome)["loss"] == pytest.approx(1 - curve[-1] / 100)


def test_the_reported_validation_loss_is_the_last(tmp_path, monkeypatch):
    values = [3.0, 1.0, 2.0, 2.5, 4.0]
    scores = scripted([{"validation_loss": loss, "perplexity": math.exp(loss)} for loss in values])
    monkeypatch.setattr(LanguageModelingTask, "evaluate", scores)
    outcome = run(CASES["language_model"], tmp_path, evaluate_every=1)
    curve = [loss for _, loss in outcome.facts["curve"]]
    assert curve == values
    assert metrics(outcome)["validation_loss"] == 4.0
    assert metrics(outcome)["perplexity"] == math.exp(4.0)


def test_images_are_evaluated_once_after_training(tmp_path, monkeypatch):
    seen = []

    def accuracy(task, split):
        seen.append((split, task._step))
        return 0.5, 10

    monkeypatch.setattr(ImageTask, "accuracy", accuracy)
    run(CASES["image"], tmp_path)
    assert seen == [("test", 3), ("train", 3)]


def test_a_run_says_what_its_thresholds_cost_and_where_they_went(tmp_path):
    case, over = CASES["text"], {"method": "fused", "clipping": {"scope": "per_layer"}}
    adaptive = run(case, tmp_path / "adaptive", **merge(over, {"clipping": {"adaptive": {"quantile": 0.6, "budget": 0.01}}}))
    by_name = {m.name: m for m in adaptive.metrics}
    privacy, cost = ["epsilon", "stated_epsilon"], ["training_seconds", "processor_seconds", "clipped_fraction"]
    assert list(by_name) == ["accuracy", *privacy, *cost, "noise_ratio", "clipped_share", "final_bound"]
    assert by_name["noise_ratio"].kind == "counted"
    assert by_name["noise_ratio"].value == pytest.approx(1 / math.sqrt(0.99), rel=1e-12)
    last = [bounds[1] for bounds in adaptive.facts["thresholds"].values()]
    assert by_name["final_bound"].value == pytest.approx(math.hypot(*last))
    clipped = adaptive.facts["clipped_fractions_released"]
    assert list(clipped) == list(adaptive.facts["thresholds"])
    assert by_name["clipped_share"].value == pytest.approx(100 * sum(clipped.values()) / len(clipped))
    fixed = metrics(run(case, tmp_path / "fixed", **over))
    assert list(fixed) == ["accuracy", *privacy, *cost, "noise_ratio"]
    assert fixed["noise_ratio"] == 1.0


@pytest.mark.parametrize("name", ["text", "zeroth", "language_model"])
def test_the_clipped_fraction_is_the_mean_over_non_empty_steps(name, tmp_path):
    outcome = run(CASES[name], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    clipped = [line["clipped_fraction"] for line in lines if line["clipped_fraction"] is not None]
    assert metrics(outcome)["clipped_fraction"] == pytest.approx(sum(clipped) / len(clipped))
    assert outcome.facts["clipped_fraction_not_private"] == clipped


def test_a_run_without_privacy_has_no_epsilon_and_no_noise(tmp_path):
    plain = run(CASES["text"], tmp_path, method="nonprivate", clipping=None, epsilon=None)
    by_name = {m.name: m for m in plain.metrics}
    assert list(by_name) == ["accuracy", "epsilon", "training_seconds", "processor_seconds", "clipped_fraction"]
    assert (by_name["epsilon"].value, by_name["epsilon"].text) == (None, "none")
    assert (by_name["clipped_fraction"].value, by_name["clipped_fraction"].note) == (None, "no clipping")


def test_a_long_run_leaves_a_short_list_in_its_record(tmp_path, monkeypatch):
    """And a line a step in its log."""
    monkeypatch.setattr(trainer, "LINES", 4)
    for name in ("text", "zeroth"):
        outcome = run(CASES[name], tmp_path / name, steps=10, sampler="fixed")
        assert len(outcome.facts["clipped_fraction_not_private"]) == 5
        lines = (tmp_path / name / "steps.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(10))

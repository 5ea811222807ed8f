"""What a record says was reached is what the last step reached, and not the best of a curve that private rows may have shaped."""

from __future__ import annotations

import itertools

import pytest
from job_runs import CASES, run

from dpbench.jobs import continuing, imaging, pretraining, training

SCRIPT = [0.40, 0.90, 0.70, 0.30, 0.60]  # the best is neither the first nor the last


def scripted(values):
    given = itertools.cycle(values)
    return lambda *_: next(given)


def metrics(outcome):
    return {m.name: m.value for m in outcome.metrics}


@pytest.mark.parametrize("name", ["features", "text", "zeroth", "compress", "drop", "prune"])
def test_the_reported_accuracy_is_the_last_of_the_curve(name, tmp_path, monkeypatch):
    case = CASES[name]
    monkeypatch.setattr(case.trained, "accuracy", scripted([(value, 20) for value in SCRIPT]))
    found = run(case, tmp_path)
    curve = [accuracy for _, accuracy in found.facts["curve"]]
    assert len(curve) > 2
    assert curve == [100 * value for _, value in zip(curve, itertools.cycle(SCRIPT), strict=False)]
    assert metrics(found)["accuracy"] == curve[-1] < max(curve)
    assert found.facts["curve"][-1][0] == case.settings["steps"]
    if "gained" in metrics(found):
        assert metrics(found)["gained"] == pytest.approx(curve[-1] - curve[0])


def test_a_curve_evaluates_no_model_but_the_one_at_hand(tmp_path):
    """The accuracy that is reported is that of the weights the job leaves."""
    from job_runs import context_of

    case = CASES["features"]
    task = training.FeatureTask(case.parsed(), context_of(case, tmp_path))
    curve = training.Curve(task, 4, 15)
    curve(4)
    assert curve.points == [[4, 100 * task.accuracy()[0]]]


@pytest.mark.parametrize("name", ["prompted", "prompted_zeroth"])
def test_the_reported_scores_of_prompts_are_the_last(name, tmp_path, monkeypatch):
    values = scripted([({"accuracy": 100 * value, "loss": 1 - value}, {}) for value in SCRIPT])
    monkeypatch.setattr(continuing.Task, "evaluate", values)
    found = run(CASES[name], tmp_path)
    curve = [accuracy for _, accuracy in found.facts["curve"]]
    assert metrics(found)["accuracy"] == curve[-1] < max(curve)
    assert metrics(found)["loss"] == pytest.approx(1 - curve[-1] / 100)


def test_the_reported_validation_loss_is_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining.Task, "evaluate", scripted([3.0, 1.0, 2.0, 2.5, 4.0]))
    found = run(CASES["language_model"], tmp_path, evaluate_every=1)
    curve = [loss for _, loss in found.facts["curve"]]
    assert curve == [3.0, 1.0, 2.0, 2.5, 4.0]
    assert metrics(found)["validation_loss"] == 4.0


def test_images_are_evaluated_once_after_training(tmp_path, monkeypatch):
    seen = []

    def accuracy(task, split):
        seen.append((split, task._step))
        return 0.5, 10

    monkeypatch.setattr(imaging.ImageTask, "accuracy", accuracy)
    run(CASES["image"], tmp_path)
    assert seen == [("test", 3), ("train", 3)]

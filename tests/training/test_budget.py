"""The budget of every job: its noise is calibrated for the rows it draws from, and its relation reaches the accountant."""

from __future__ import annotations

import dataclasses

import pytest
from job_runs import CASES, COMPRESS, EPSILON, context_of, run
from spending import epsilon_of

from dpbench.compression import config as compression
from dpbench.errors import DpbenchError
from dpbench.jobs import compression as compress
from dpbench.jobs import language_modeling as language_model
from dpbench.jobs import text_classification as classify
from dpbench.privacy import accounting
from dpbench.privacy.accounting import Release
from dpbench.privacy.composition import release_in, release_of
from dpbench.privacy.mechanism import Clipping, Sampling, calibrated
from dpbench.training import config
from dpbench.validation import parse

LEAST = 0.99
PRIVATE = [name for name in CASES if name not in ("prune", "drop", "virtual_stages", "prompted_zeroth", "answers", "pairs")]


def spent(record, relation, delta):
    """By the accountant alone, of what a record says was done."""
    sampling = record["sampling"]
    rate = sampling["expected_batch_size"] / sampling["dataset_size"]
    arguments = {"noise_multiplier": record["noise_multiplier"], "sample_rate": rate, "steps": record["steps"], "delta": delta}
    return epsilon_of(**arguments, relation=relation)


@pytest.mark.parametrize("name", PRIVATE)
def test_the_relation_of_a_job_reaches_the_accountant(name, tmp_path):
    """Under replace_one the same epsilon takes more noise: 5 % of epsilon here, where calibration is within 1 %."""
    outcome = run(CASES[name], tmp_path, relation="replace_one", steps=3)
    assert outcome.privacy.relation == outcome.mechanism["relation"] == "replace_one"
    assert outcome.privacy.epsilon == spent(outcome.mechanism, "replace_one", outcome.privacy.delta)
    assert LEAST * EPSILON <= outcome.privacy.epsilon <= EPSILON
    assert spent(outcome.mechanism, "add_or_remove", outcome.privacy.delta) < 0.97 * outcome.privacy.epsilon
    assert outcome.privacy.epsilon_rdp is None, "RDP refuses replace_one with Poisson sampling, and is not asked about another"


def test_the_relation_of_a_teacher_is_its_students(tmp_path):
    over = {
        "student": {"layers": 1, "start": "teacher"},
        "teacher": {},
        "distil": {"weight": 0.5},
        "split": {"teacher": 0.5, "student": 0.5},
    }
    student_settings = parse(compress.Settings, COMPRESS | over | {"relation": "replace_one"}, "test")
    teacher = parse(compress.Settings, student_settings.of_teacher(), "teacher").mechanism(100, 100, 0)
    both = student_settings.plan(100, 100, 0, (release_of(teacher),))
    assert teacher.relation == both.relation == "replace_one"
    parts = (release_of(teacher), release_in(both.describe()))
    assert both.epsilon() == accounting.epsilon(parts, delta=1e-5, relation="replace_one")
    assert LEAST * EPSILON <= both.epsilon() <= EPSILON


@pytest.mark.parametrize("name", ["features", "text", "zeroth", "compress"])
def test_noise_is_calibrated_for_the_rows_that_are_drawn_from(name, tmp_path):
    """`class_keep` leaves fewer rows than are protected: each is drawn more often, and that is what is paid for."""
    outcome = run(CASES[name], tmp_path, class_keep={"positive": 0.4})
    kept, rows = outcome.facts["rows_drawn_from"], outcome.facts["train_rows"]
    assert kept < 0.9 * rows
    assert outcome.mechanism["sampling"]["dataset_size"] == kept
    assert outcome.privacy.epsilon == spent(outcome.mechanism, "add_or_remove", outcome.privacy.delta)
    assert LEAST * EPSILON <= outcome.privacy.epsilon <= EPSILON


def settings(**over):
    return parse(classify.Settings, CASES["text"].settings | over, "test")


@pytest.mark.parametrize("rows", [70, 200], ids=["too few", "too many"])
def test_noise_calibrated_for_other_rows_stops_the_run(rows, monkeypatch):
    """Planted: drawn from 100 rows, calibrated for fewer, which wastes noise, or for more, which spends too much."""

    def misled(without_noise, epsilon):
        sampling = dataclasses.replace(without_noise.sampling, dataset_size=rows)
        plan = calibrated(dataclasses.replace(without_noise, sampling=sampling), epsilon)
        return dataclasses.replace(plan, sampling=without_noise.sampling, target_epsilon=None)

    monkeypatch.setattr(config, "calibrated", misled)
    with pytest.raises(DpbenchError, match=r"spends epsilon [\d.]+, where 2 was asked for"):
        settings().mechanism(200, 100, 0)


@pytest.mark.parametrize("over", [{"steps": 6}, {"epsilon": 1.0}, {"relation": "replace_one"}, {"expected_batch_size": 6}])
def test_noise_calibrated_for_another_run_stops_the_run(over, monkeypatch):
    """Planted: a calibration that is kept under a name too short for it."""
    kept = settings(**over).mechanism(100, 100, 0).noise_multiplier
    monkeypatch.setattr("dpbench.privacy.accounting.calibrate", lambda *args, **options: kept)
    with pytest.raises(DpbenchError, match=r"where 2 was asked for|is above the target 2"):
        settings().mechanism(100, 100, 0)


def test_other_budgets_are_held_to_what_was_asked_for_too(tmp_path, monkeypatch):
    """Of blocks of text, and behind a teacher."""

    def generous(without_noise, epsilon):
        return dataclasses.replace(calibrated(without_noise, epsilon / 2), target_epsilon=epsilon)

    monkeypatch.setattr(config, "calibrated", generous)
    case = CASES["language_model"]
    with pytest.raises(DpbenchError, match="where 2 was asked for"):
        language_model.run(case.parsed(), context_of(case, tmp_path))

    def late(without_noise, epsilon):
        return dataclasses.replace(calibrated(without_noise, 0.7 * epsilon), target_epsilon=epsilon)

    monkeypatch.setattr(compression, "calibrated", late)
    over = {
        "student": {"layers": 1, "start": "teacher"},
        "teacher": {},
        "distil": {"weight": 0.5},
        "split": {"teacher": 0.5, "student": 0.5},
    }
    student_settings = parse(compress.Settings, COMPRESS | over, "test")
    with pytest.raises(DpbenchError, match="where 2 was asked for"):
        student_settings.plan(100, 100, 0, (Release(2.0, 0.12, 4),))


def test_published_rows_are_stated_and_not_taken_for_the_target():
    """DPZero's noise is for more rows than there are: epsilon is what it is, and is said."""
    mechanism = settings(accounted_rows=200).mechanism(100, 100, 0)
    assert mechanism.target_epsilon is None
    assert mechanism.epsilon() > EPSILON
    assert mechanism.sampling == Sampling("poisson", 100, 12.0)
    assert mechanism.clipping == Clipping(bound=0.5)


def test_hardly_any_noise_may_spend_less_than_was_asked_for():
    """Calibration stops there: an epsilon in the thousands is none that anybody asks for."""
    mechanism = settings(epsilon=1e5).mechanism(100, 100, 0)
    assert mechanism.epsilon() < 1e5

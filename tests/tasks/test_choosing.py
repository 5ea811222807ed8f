"""Which rows are chosen: by what they hold, never by where they stand; and what that changes in a run's name."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from parents import as_parent

from dpbench.data import asked
from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import prompt_completion as prompted
from dpbench.jobs import text_classification as classify
from dpbench.jobs import text_features as features
from dpbench.spec.sources import Source
from dpbench.tasks.prompt_completion.task import PromptTask
from dpbench.tasks.text_classification.rows import RowSplit
from dpbench.tasks.text_classification.task import FeatureTask, TextTask
from dpbench.validation import parse

SCRATCH = Source(kind="scratch", synthetic=True)
SOURCES = {f"dataset:{name}": datasets.resolve(name, "embedded") for name in ("sst2", "qnli", "wikitext2")}
SOURCES |= {"model:tiny_bert": SCRATCH, "model:gpt2": SCRATCH}
BASE = {
    "dataset": "sst2",
    "training": "features",
    "model": "tiny_bert",
    "method": "bookkeeping",
    "clipping": {"function": "abadi"},
    "epsilon": 8,
    "steps": 2,
    "expected_batch_size": 40,
    "max_length": 32,
    "train_limit": 200,
    "optimizer": {"learning_rate": 0.01},
}
PROMPTED = {
    "dataset": "sst2",
    "size": "tiny",
    "vocabulary": 300,
    "method": "bookkeeping",
    "clipping": {"function": "abadi"},
    "epsilon": 8,
    "steps": 2,
    "expected_batch_size": 8,
    "max_length": 32,
    "train_limit": 30,
    "evaluate_limit": 5,
    "optimizer": {"learning_rate": 0.01},
}
CHOICES = [{"class_keep": {"positive": 0.5}}, {"per_class": 30}, {"per_class": 30, "class_keep": {"negative": 0.6}}]


def settings(**over):
    return parse(classify.Settings, BASE | over, "test")


def context(folder, **parents):
    return Context(folder, 1, SOURCES, StepLog(folder / "steps.jsonl"), parents=parents)


@pytest.fixture(scope="module", params=["sst2", "qnli"])
def frozen(request, tmp_path_factory):
    """(task, folder of its features)."""
    folder = tmp_path_factory.mktemp(request.param)
    feature_settings = {"dataset": request.param, "model": "tiny_bert", "train_limit": 200, "max_length": 32}
    outcome = features.run(parse(features.Settings, feature_settings, "test"), context(folder))
    as_parent(folder, "text_features", outcome.artefacts)
    return request.param, folder


def class_of(task, keep):
    return dict(zip(datasets.plugins.get("dataset", task).extra["classes"], keep.values(), strict=False))


@pytest.mark.parametrize("choice", CHOICES)
def test_features_and_full_training_choose_the_same_rows(choice, frozen, tmp_path):
    task, folder = frozen
    if "class_keep" in choice:
        choice = choice | {"class_keep": class_of(task, choice["class_keep"])}
    on_features = FeatureTask(settings(dataset=task, **choice), context(tmp_path, features=folder))
    full = TextTask(settings(dataset=task, training="full", **choice), context(tmp_path))
    everything = FeatureTask(settings(dataset=task), context(tmp_path, features=folder))
    assert on_features.rows == full.rows
    assert on_features.y.tolist() == full.train.labels[full.index].tolist()
    assert on_features.x.equal(everything.x[full.index])
    assert 0 < len(on_features) < len(everything)


def rows_of_a_dataset(count=300):
    """Texts, some of them twice, and labels: not by turns, so that a place says nothing of a class."""
    generator = np.random.default_rng(0)
    return [f"text {i}" for i in generator.integers(0, 4 * count // 5, count)], generator.integers(0, 2, count)


def chosen(run_settings, texts, labels):
    split = RowSplit(run_settings, labels, lambda: texts, 1)
    return Counter((texts[i], int(labels[i])) for i in split.drawn)


@pytest.mark.parametrize("choice", [*CHOICES, {"class_keep": {"positive": 0.5}, "evaluate_on": "train_rest"}])
def test_the_order_of_the_rows_decides_nothing(choice):
    run_settings, (texts, labels) = settings(**choice), rows_of_a_dataset()
    before = chosen(run_settings, texts, labels)
    order = np.random.default_rng(1).permutation(len(texts))
    assert chosen(run_settings, [texts[i] for i in order], labels[order]) == before


@pytest.mark.parametrize("evaluate_on", ["validation", "train_rest"])
def test_removing_a_row_leaves_class_keeps_fate_of_all_others(evaluate_on):
    run_settings = settings(class_keep={"positive": 0.5, "negative": 0.7}, evaluate_on=evaluate_on)
    texts, labels = rows_of_a_dataset()
    before, seen = chosen(run_settings, texts, labels), set()
    for gone in range(60):
        after = chosen(run_settings, texts[:gone] + texts[gone + 1 :], np.delete(labels, gone))
        removed = before - after
        assert not after - before
        assert not set(removed) - {(texts[gone], int(labels[gone]))}
        seen.add(removed.total())
    assert seen == {0, 1}


def test_removing_a_row_admits_at_most_the_next_of_its_class():
    run_settings = settings(per_class=40)
    texts, labels = rows_of_a_dataset()
    before, seen = chosen(run_settings, texts, labels), set()
    for gone in range(120):
        row = (texts[gone], int(labels[gone]))
        after = chosen(run_settings, texts[:gone] + texts[gone + 1 :], np.delete(labels, gone))
        left, entered = before - after, after - before
        assert not set(left) - {row}
        assert left.total() == entered.total() <= 1
        assert {label for _, label in entered} <= {row[1]}
        seen.add(left.total())
    assert seen == {0, 1}


def test_features_of_other_rows_than_the_dataset_has_are_refused(frozen, tmp_path):
    task, folder = frozen
    run_settings = settings(dataset=task, per_class=20, train_limit=199)
    with pytest.raises(DpbenchError, match=f"{task} has 199 training rows, and its features 200"):
        FeatureTask(run_settings, context(tmp_path, features=folder))


class _NoModel(PromptTask):
    """The choice of rows alone."""

    def __init__(self, run_settings):
        self.settings = run_settings


@pytest.mark.parametrize("evaluate_on", ["validation", "train_rest"])
def test_prompts_are_chosen_by_what_they_hold(evaluate_on, tmp_path, monkeypatch):
    run_settings = parse(prompted.Settings, PROMPTED | {"evaluate_on": evaluate_on}, "test")
    load, order, gone = asked.load, None, None

    def loaded(name, split, source):
        rows = load(name, split, source)
        if split != "train":
            return rows
        rows = rows[:200]
        if order is not None:
            rows = [rows[i] for i in order]
        return [row for row in rows if row != gone]

    monkeypatch.setattr(asked, "load", loaded)
    train, evaluated = _NoModel(run_settings)._split(context(tmp_path))
    order = np.random.default_rng(0).permutation(200)
    again, evaluated_again = _NoModel(run_settings)._split(context(tmp_path))
    assert Counter(train) == Counter(again)
    assert Counter(evaluated) == Counter(evaluated_again)
    assert len(train) == 30
    gone = train[7]
    fewer, _ = _NoModel(run_settings)._split(context(tmp_path))
    assert set(train) - set(fewer) == {gone}
    assert len(set(fewer) - set(train)) == 1


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"class_keep": {"positive": 0.5}}, "content"),
        ({"per_class": 5}, "content"),
        ({"class_keep": {"positive": 1.0}}, None),
        ({}, None),
        ({"training": "full", "class_keep": {"positive": 0.5}}, None),
        ({"training": "full", "per_class": 5}, None),
    ],
)
def test_only_runs_whose_rows_changed_have_another_name(over, says):
    """Those on features that choose rows: their earlier records chose by a row's place."""
    run_settings = settings(**over)
    assert run_settings.chosen_by == says
    assert ("chosen_by" in run_settings.model_dump()) == (says is not None)
    assert parse(classify.Settings, run_settings.model_dump(mode="json"), "test") == run_settings
    if says is None:
        with pytest.raises(DpbenchError, match="chosen_by: nothing is chosen here"):
            settings(**over, chosen_by="content")


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({}, "content"),
        ({"train_limit": None}, None),
        ({"steps": 0, "method": "nonprivate", "clipping": None, "epsilon": None}, None),
        ({"steps": 0, "method": "nonprivate", "clipping": None, "epsilon": None, "evaluate_on": "train_rest"}, "content"),
    ],
)
def test_only_prompted_runs_that_choose_rows_have_another_name(over, says):
    run_settings = parse(prompted.Settings, PROMPTED | over, "test")
    assert run_settings.chosen_by == says
    assert ("chosen_by" in run_settings.model_dump()) == (says is not None)

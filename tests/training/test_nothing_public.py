"""What is taken for public is public: initial weights, tokenizers, centres and scales do not see what a private row holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from job_runs import CASES, SOURCES, context_of, stirred, task_of
from parents import as_parent
from safetensors.torch import load_file, save_file

from dpbench.data import registry
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import image_features
from dpbench.jobs import text_features as features
from dpbench.tasks.features import FILE
from dpbench.tasks.language_modeling import task as language_modeling
from dpbench.tasks.text_classification.encoding import TextData
from dpbench.validation import parse

ROW = 7
"""Of the train split, the private row that is another in the neighbouring dataset."""

ODD = "Zyx qwv jjkk zyx qwv! " * 40  # longer than any other, of words and pieces that no other text has
NAMES = ("sst2", "qnli", "mnist", "e2e_nlg", "squad")
HALF = 2e-3
"""Of features in fp16: a row's padding, and so its rounding, changes with the rows beside it."""


def other(value):
    """Another value of the same kind, unlike all others; of a table's slots another table."""
    if isinstance(value, str):
        return "name[Zyx qwv], area[jjkk]" if "[" in value else ODD
    if isinstance(value, list | tuple):
        return type(value)(other(part) for part in value)
    if isinstance(value, dict):
        return {name: other(part) for name, part in value.items()}
    return value


def replaced(columns, label_columns=("label", "labels")):
    """The columns of a split with one row replaced."""
    changed = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            values = values.copy()
            values[ROW] = 1 - values[ROW] % 2 if name in label_columns else 255 - values[ROW]
        else:
            values = [*values]
            is_label = name in label_columns
            values[ROW] = 1 - int(values[ROW]) % 2 if is_label else other(values[ROW])
        changed[name] = values
    return changed


@pytest.fixture
def neighbour(monkeypatch):
    """A switch: after it every private train split has one row that is another."""

    def switch():
        load = registry.load

        def loaded(name, split, source, limit=None):
            data = load(name, split, source, limit)
            if name not in NAMES or split != "train":
                return data
            return dataclasses.replace(data, columns=replaced(data.columns))

        monkeypatch.setattr(registry, "load", loaded)

    return switch


def state(task):
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def same(one, two):
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


PUBLIC_FACTS = ("tokenizer_sha256", "vocabulary", "parameters", "tokenizer_split", "tokenizer_vocabulary")
HEADS = {"text": {"centre": True, "head": "label_words", "feature_norm": 1.0}, "features": {"centre": True}}
BY_ROW = ("text", "pairs", "compress", "image", "image_features", "generate", "prompted", "answers", "features")


@pytest.mark.parametrize("name", BY_ROW)
def test_a_tasks_public_parts_do_not_look_at_private_rows(name, tmp_path, neighbour):
    """Initial weights, buffers such as the public centre, tokenizer and vocabulary; and every other row's own losses."""
    case, over = CASES[name], HEADS.get(name, {})
    before = task_of(case, tmp_path / "one", **over)
    neighbour()
    after = task_of(case, tmp_path / "two", **over)
    same(state(before), state(after))
    known = [{key: getattr(t, "facts", {}).get(key) for key in PUBLIC_FACTS} for t in (before, after)]
    assert known[0] == known[1]
    if name in ("features", "image_features"):  # of one parent run: that of another row is looked at below
        return
    one, two = losses_by_row(before), losses_by_row(after)
    moved = [a for a in one if not any(abs(a - b) < 1e-5 * (1 + abs(a)) for b in two)]
    assert len(moved) <= 1, "of the other rows none has another loss"
    if name not in ("prompted", "answers"):  # which choose rows by their content: the replaced one may be left out
        assert len(moved) == 1, "and the row itself is another, or this test shows nothing"


def losses_by_row(task):
    """[12] of the first rows, each in a batch of its own; a place may have moved by one where rows are grouped or chosen."""
    model = stirred(task.model).eval()
    row_losses = []
    with torch.no_grad():
        for row in range(12):
            (piece,) = task.physical(np.asarray([row]))
            row_losses.append(float(task.losses(model, task.batch(piece))))
    return row_losses


@pytest.mark.parametrize("dataset", ["sst2", "qnli"])
def test_the_public_mean_of_features_is_of_public_text_alone(dataset, tmp_path, neighbour):
    settings = parse(features.Settings, {"dataset": dataset, "model": "tiny_bert", "train_limit": 40, "max_length": 32}, "test")
    one = features_of(features, settings, tmp_path / "one")
    neighbour()
    two = features_of(features, settings, tmp_path / "two")
    for name in ("public_mean", "label_phrases", "validation_x", "validation_y"):
        if name in one or name in two:
            assert torch.equal(one[name], two[name]), name
    only_the_row_is_another(one, two)


def test_features_of_images_are_each_images_own(tmp_path, neighbour):
    settings = parse(image_features.Settings, {"dataset": "mnist", "model": "scattering", "train_limit": 20}, "test")
    one = features_of(image_features, settings, tmp_path / "one")
    neighbour()
    two = features_of(image_features, settings, tmp_path / "two")
    assert torch.equal(one["test_x"], two["test_x"])
    only_the_row_is_another(one, two)


def features_of(job, settings, folder):
    folder.mkdir()
    job.run(settings, Context(folder, 0, SOURCES, StepLog(folder / "steps.jsonl")))
    return load_file(folder / FILE)


def only_the_row_is_another(one, two):
    gap = (one["train_x"].float() - two["train_x"].float()).flatten(1).abs().amax(1)
    scale = one["train_x"].float().abs().max()
    assert float(gap[ROW] / scale) > 10 * HALF
    gap[ROW] = 0
    assert float(gap.max() / scale) < HALF


def test_a_head_on_features_sees_each_row_by_itself(tmp_path):
    """Centred by the public mean: with another private row in the file, the others are prepared as before."""
    case = CASES["features"]
    context = context_of(case, tmp_path)
    over = {"centre": True, "feature_norm": 2.0, "head": "label_words"}
    before = case.task(case.parsed(**over), context)
    stored = load_file(context.parents["features"] / FILE)
    stored["train_x"][ROW] = 40.0
    changed = tmp_path / "changed"
    changed.mkdir()
    save_file(stored, changed / FILE)
    context.parents["features"] = as_parent(changed, "text_features", [FILE])
    after = case.task(case.parsed(**over), context)
    same(state(before), state(after))
    moved = (before.x != after.x).any(1)
    assert moved.nonzero().flatten().tolist() == [ROW]
    assert torch.equal(before.evaluated[0], after.evaluated[0])


def test_blocks_of_text_are_cut_by_a_tokenizer_of_other_text(tmp_path, monkeypatch):
    """Of the language model's own corpus another split makes the tokenizer, whatever the train split says."""
    case, load = CASES["language_model"], registry.load
    before = task_of(case, tmp_path)

    def loaded(name, split, source, limit=None):
        data = load(name, split, source, limit)
        if split != "train":
            return data
        return dataclasses.replace(data, columns={"text": [1000 * ODD, *data.columns["text"]]})

    monkeypatch.setattr(registry, "load", loaded)
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path / "cache"))  # a tokenizer that is kept would hide where it comes from
    after = task_of(case, tmp_path)
    same(state(before), state(after))
    assert {key: before.facts.get(key) for key in PUBLIC_FACTS} == {key: after.facts.get(key) for key in PUBLIC_FACTS}
    assert torch.equal(before.validation, after.validation)
    assert not torch.equal(before.train, after.train)


def test_a_planted_tokenizer_of_private_text_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(language_modeling, "_TOKENIZER_SPLIT", "train")
    with pytest.raises(AssertionError):
        test_blocks_of_text_are_cut_by_a_tokenizer_of_other_text(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["text", "compress"])
def test_a_planted_centre_of_private_text_is_seen(name, tmp_path, neighbour, monkeypatch):
    monkeypatch.setattr(TextData, "public_inputs", lambda data: data.split("train", 80)[0])
    with pytest.raises(AssertionError):
        test_a_tasks_public_parts_do_not_look_at_private_rows(name, tmp_path, neighbour)


def test_a_planted_mean_of_private_features_is_seen(tmp_path, neighbour, monkeypatch):
    monkeypatch.setattr(TextData, "public_lines", lambda data: data.split("train", 40)[0])
    with pytest.raises(AssertionError):
        test_the_public_mean_of_features_is_of_public_text_alone("sst2", tmp_path, neighbour)

"""Held-out training rows: which they are, and who sees them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import image_classification as image
from dpbench.jobs import text_classification as classify
from dpbench.jobs import text_features as features
from dpbench.spec.expand import config_of, merge, run_id
from dpbench.spec.sources import Source
from dpbench.tasks.features import FILE
from dpbench.tasks.holdout import is_held_out, share_of
from dpbench.tasks.image_classification.task import ImageTask
from dpbench.tasks.text_classification.task import FeatureTask, TextTask
from dpbench.validation import parse

SCRATCH = Source(kind="scratch", synthetic=True)
SOURCES = {f"dataset:{name}": datasets.resolve(name, "embedded") for name in ("sst2", "qnli", "mnist", "wikitext2")}
SOURCES |= {"model:tiny_bert": SCRATCH, "model:cnn4": SCRATCH}
TEXT = {
    "dataset": "sst2",
    "training": "full",
    "model": "tiny_bert",
    "method": "fused",
    "clipping": {"function": "abadi", "scope": "per_layer"},
    "epsilon": 8,
    "steps": 2,
    "expected_batch_size": 40,
    "max_length": 32,
    "train_limit": 400,
    "optimizer": {"learning_rate": 0.01},
}
IMAGE = {
    "dataset": "mnist",
    "model": "cnn4",
    "method": "bookkeeping",
    "clipping": {"function": "abadi"},
    "epsilon": 8,
    "steps": 2,
    "expected_batch_size": 40,
    "optimizer": {"learning_rate": 0.5},
    "train_limit": 400,
    "train_evaluated": 50,
}
HELD_OUT = {"evaluate_on": "train_rest"}
KEYS = [f"text {i}".encode() for i in range(5000)]


def context(folder, **parents):
    return Context(folder, 1, SOURCES, StepLog(folder / "steps.jsonl"), parents=parents)


def text(**over):
    return parse(classify.Settings, merge(TEXT, over), "test")


def pictures(**over):
    return parse(image.Settings, merge(IMAGE, over), "test")


def test_a_row_decides_alone_whether_it_is_held_out():
    """Five standard deviations of a share of 5,000 rows are 0.028."""
    decisions = is_held_out(KEYS, 0.2, "test")
    assert np.array_equal(decisions[1:], is_held_out(KEYS[1:], 0.2, "test"))
    assert abs(decisions.mean() - 0.2) < 0.028
    assert not (decisions & ~is_held_out(KEYS, 0.3, "test")).any(), "a larger share has all rows of a smaller one"


def test_holding_out_is_independent_of_class_keep():
    """Were both drawn from one hash, class_keep would leave all held-out rows and too few of those that are trained on."""
    apart, kept = is_held_out(KEYS, 0.2, "test"), np.asarray([share_of(key) < 0.6 for key in KEYS])
    assert abs(kept[apart].mean() - 0.6) < 5 * math.sqrt(0.24 / apart.sum())


@pytest.mark.parametrize("task", ["sst2", "qnli"])
def test_features_and_full_training_hold_out_the_same_rows(task, tmp_path, as_parent):
    settings = parse(features.Settings, {"dataset": task, "model": "tiny_bert", "train_limit": 400, "max_length": 128}, "test")
    (tmp_path / "features").mkdir()
    features.run(settings, context(tmp_path / "features"))
    as_parent(tmp_path / "features", "text_features", [FILE])
    full = TextTask(text(dataset=task, max_length=128, **HELD_OUT), context(tmp_path))
    frozen = FeatureTask(text(dataset=task, training="features", **HELD_OUT), context(tmp_path, features=tmp_path / "features"))
    full_task = TextTask(text(dataset=task, max_length=128), context(tmp_path))
    drawn = {tuple(full.train.ids[i]) for i in full.index}
    evaluated = {tuple(ids) for ids in full.evaluated.ids}
    assert not drawn & evaluated
    assert drawn | evaluated == {tuple(ids) for ids in full_task.train.ids}
    assert 0 < len(full.evaluated.ids) == 400 - len(full)
    assert full.rows == frozen.rows == len(full) == len(frozen)
    assert frozen.y.tolist() == full.train.labels[full.index].tolist()
    assert frozen.evaluated[1].tolist() == full.evaluated.labels.tolist()
    assert len(full_task) == full_task.rows == 400


def test_class_keep_thins_the_held_out_rows_too(tmp_path):
    thinned = TextTask(text(class_keep={"positive": 0.5}, **HELD_OUT), context(tmp_path))
    plain = TextTask(text(**HELD_OUT), context(tmp_path))
    assert thinned.rows == plain.rows == len(plain)
    assert len(thinned) < len(plain)
    assert len(thinned.evaluated.ids) < len(plain.evaluated.ids)
    assert set(thinned.index) < set(plain.index)


def test_held_out_images_are_evaluated_and_never_drawn(tmp_path):
    full_task, apart = ImageTask(pictures(), context(tmp_path)), ImageTask(pictures(**HELD_OUT), context(tmp_path))
    train, held = ({i.numpy().tobytes() for i in apart.splits[split][0]} for split in ("train", "train_rest"))
    assert not train & held
    assert train | held == {i.numpy().tobytes() for i in full_task.splits["train"][0]}
    assert len(apart) + len(apart.splits["train_rest"][1]) == len(full_task) == 400
    done = image.run(pictures(**HELD_OUT), context(tmp_path))
    assert done.facts["evaluated_rows"] == 400 - done.facts["train_rows"]
    assert done.mechanism["sampling"]["dataset_size"] == len(apart)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: text(held_out=0.3), "holds nothing out"),
        (lambda: pictures(held_out=0.3), "holds nothing out"),
        (lambda: text(held_out=1.0, **HELD_OUT), "held_out"),
        (lambda: text(evaluate_on="test"), "evaluate_on"),
        (lambda: is_held_out(KEYS[:3], 1e-9, "sst2"), "holds out none of the 3 training rows of sst2"),
        (lambda: is_held_out(KEYS[:3], 1 - 1e-9, "sst2"), "holds out all of the 3"),
    ],
)
def test_nonsense_is_named(make, says):
    with pytest.raises(DpbenchError, match=says):
        make()


def name(job, settings):
    config = config_of(job, settings, 1, lambda kind, name: Source(kind="embedded", revision="v1", synthetic=True))
    return run_id(config | {"versions": {}, "parents": {}})


def test_runs_that_hold_nothing_out_keep_their_names():
    """That of the image run is from before rows were held out; those of classify are in test_clipping_settings.py."""
    assert name("image_classification", IMAGE) == "4a563b0d9f37"
    for job, base, evaluated in (("image_classification", IMAGE, "test"), ("text_classification", TEXT, "validation")):
        assert name(job, base | {"evaluate_on": evaluated}) == name(job, base)
        assert name(job, base | HELD_OUT | {"held_out": 0.2}) == name(job, base | HELD_OUT)
        assert len({name(job, base), name(job, base | HELD_OUT), name(job, base | HELD_OUT | {"held_out": 0.3})}) == 3

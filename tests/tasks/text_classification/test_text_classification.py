"""A text classifier's pieces: settings, thinning by one row, heads, parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from text_settings import FEATURES
from torch import nn

from dpbench.errors import DpbenchError
from dpbench.jobs import text_classification as classify
from dpbench.tasks.text_classification.model import Head, make_head
from dpbench.tasks.text_classification.rows import kept_rows
from dpbench.tasks.text_classification.task import parameter_groups
from dpbench.validation import parse

CLASSES = ["negative", "positive"]


def settings(**over):
    return parse(classify.Settings, FEATURES | over, "test")


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"method": "nonprivate"}, "takes neither clipping nor epsilon"),
        ({"clipping": None}, "needs clipping and epsilon"),
        ({"epsilon": -1}, "epsilon"),
        ({"class_keep": {"positive": 1.5}}, "class_keep"),
        ({"head": "label_words", "hidden": [4]}, "takes no hidden layers"),
        ({"optimiser": {}}, "did you mean 'optimizer'"),
        ({"optimizer": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


def test_thinning_looks_at_one_row_at_a_time():
    """Removing a row leaves the fate of all others as it was: the stability that keeps epsilon what it says."""
    keys = [f"text {i}" for i in range(2000)]
    labels = np.arange(2000) % 2
    run_settings = settings(class_keep={"positive": 0.5})
    kept = {keys[i] for i in kept_rows(run_settings, labels, lambda: keys, CLASSES)}
    fewer = {keys[:-1][i] for i in kept_rows(run_settings, labels[:-1], lambda: keys[:-1], CLASSES)}
    assert kept - {keys[-1]} == fewer
    share = sum(int(k.split()[1]) % 2 for k in kept) / 1000
    assert share == pytest.approx(0.5, abs=0.06)
    assert sum(1 - int(k.split()[1]) % 2 for k in kept) == 1000


def test_thinning_names_an_unknown_class():
    with pytest.raises(DpbenchError, match="did you mean 'positive'"):
        kept_rows(settings(class_keep={"positiv": 0.5}), np.zeros(3, dtype=int), lambda: ["a", "b", "c"], CLASSES)


def test_heads_of_a_seed_are_equal_and_spare_torchs_generator():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = make_head(settings(hidden=[6]), 4, 2, 1, None)
    assert torch.equal(torch.get_rng_state(), state)
    again = make_head(settings(hidden=[6]), 4, 2, 1, None)
    other = make_head(settings(hidden=[6]), 4, 2, 2, None)
    assert torch.equal(first.hidden[0].weight, again.hidden[0].weight)
    assert not torch.equal(first.hidden[0].weight, other.hidden[0].weight)
    assert not first.out.weight.any()


def test_a_label_word_head_tells_its_own_phrases_apart():
    phrases = torch.randn(2, 8)
    head = make_head(settings(head="label_words"), 8, 2, 0, phrases)
    assert head(phrases - phrases.mean(0)).argmax(-1).tolist() == [0, 1]
    with pytest.raises(DpbenchError, match="qnli declares no label_phrases"):
        settings(head="label_words", dataset="qnli")


def test_the_head_has_its_own_rate():
    body, head = nn.Linear(3, 3), Head(3, [], 2)
    model = nn.Module()
    model.body, model.head = body, head
    own_rate = settings(optimizer={"learning_rate": 0.1, "head_learning_rate": 0.4})
    optimizer = own_rate.optimizer.build(parameter_groups(own_rate, model))
    assert [(g["lr"], sum(p.numel() for p in g["params"])) for g in optimizer.param_groups] == [(0.4, 8), (0.1, 12)]
    same_rate = settings(optimizer={"learning_rate": 0.1})
    assert [g["lr"] for g in same_rate.optimizer.build(parameter_groups(same_rate, model)).param_groups] == [0.1, 0.1]
    alone = own_rate.optimizer.build(parameter_groups(own_rate, head))
    assert [(g["lr"], sum(p.numel() for p in g["params"])) for g in alone.param_groups] == [(0.4, 8)]

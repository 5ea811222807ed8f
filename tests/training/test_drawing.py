"""Examples that are counted are those that were drawn, and steps that are released those that are planned, in every loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from job_runs import CASES, run, task_of
from torch import nn

from dpbench import methods
from dpbench.errors import DpbenchError
from dpbench.measure import equivalence
from dpbench.privacy import sampling
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.training import trainer
from dpbench.training.trainer import Draws
from dpbench.validation import parse

KINDS = ("text", "zeroth", "prune", "language_model", "virtual_stages")
"""A case of every kind of method and task: an engine, a zeroth-order method, callbacks, blocks of text, groups of stages."""

PLAN = Mechanism(Sampling("poisson", 40, 8.0), 3, Clipping(bound=1.0), noise_multiplier=1.0)
COUNTED = r"step 1: \d+ examples were counted, where \d+ were drawn"
RELEASED = r"3 of the 4 steps that are accounted for were released"


def twice(pieces):
    return [*pieces, *pieces[-1:]]


def without_last(pieces):
    return pieces[:-1]


@pytest.mark.parametrize(("name", "fault"), [*itertools.product(CASES, [twice]), *itertools.product(KINDS, [without_last])])
def test_a_batch_counted_twice_or_left_out_stops_every_loop(name, fault, tmp_path, monkeypatch):
    case = CASES[name]
    physical = case.task.physical
    monkeypatch.setattr(case.task, "physical", lambda task, drawn: fault(list(physical(task, drawn))))
    with pytest.raises(DpbenchError, match=COUNTED):
        run(case, tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_a_loop_that_ends_before_its_mechanism_is_stopped(name, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "batches", lambda plan: list(sampling.batches(plan))[:-1])
    with pytest.raises(DpbenchError, match=RELEASED):
        run(CASES[name], tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_physical_batches_hold_each_drawn_row_once(name, tmp_path):
    """In any order: pieces are cut by length. Rows of images are places in the batch, of texts those of the whole split."""
    case = CASES[name]
    task = task_of(case, tmp_path)
    drawn = np.asarray([0, 1, 2, 5, 7, 11, 13, 17, 18, 19, 31, 40, 47, 52])
    pieces = list(task.physical(drawn))
    assert len(pieces) > 1 or name == "features"
    rows = np.concatenate(pieces)
    if hasattr(task, "splits"):
        rows = drawn[rows]
    expected = task.index[drawn] if hasattr(task, "index") else drawn
    assert sorted(rows.tolist()) == sorted(expected.tolist())


class _Loop:
    """A loop of three steps on eight numbers, watched as the trainer watches its own, with a fault at a step."""

    def __init__(self, method="bookkeeping"):
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.method = methods.attach(method, self.model, self.optimizer, PLAN)
        self.draws = Draws(PLAN)
        self.method.before_release(self.draws.counted)

    def backward(self, rows):
        if len(rows):
            self.method.backward(_losses, {"x": torch.ones(len(rows), 2)})

    def step(self):
        self.method.step()


def _losses(model, batch):
    return model(batch["x"])[:, 0]


@pytest.mark.parametrize("method", ["bookkeeping", "dpzero"])
def test_a_sound_loop_ends(method):
    loop = _Loop(method)
    for rows in loop.draws:
        loop.backward(rows)
        loop.step()
    loop.draws.finish()
    assert loop.draws.steps == 3
    loop.method.detach()
    loop.optimizer.step()  # nothing of the watch is left


def test_weights_have_not_moved_when_a_wrong_count_is_seen():
    loop = _Loop()
    before = [p.detach().clone() for p in loop.model.parameters()]
    rows = next(iter(loop.draws))
    loop.backward(rows)
    loop.backward(rows)
    with pytest.raises(DpbenchError, match=COUNTED):
        loop.step()
    assert all(torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))


def test_a_batch_that_is_never_released_is_seen():
    draws = iter(_Loop().draws)
    next(draws)
    with pytest.raises(DpbenchError, match=r"step 1: \d+ examples were drawn and never released"):
        next(draws)


@pytest.mark.parametrize("method", ["bookkeeping", "dpzero"])
def test_a_release_without_a_draw_is_seen(method):
    loop = _Loop(method)
    loop.backward(next(iter(loop.draws)))
    loop.step()
    with pytest.raises(DpbenchError, match="step 2 is released without a draw"):
        loop.step()


def test_a_loop_left_early_is_seen_where_it_ends():
    loop = _Loop()
    for rows in loop.draws:
        loop.backward(rows)
        loop.step()
        break
    with pytest.raises(DpbenchError, match="1 of the 3 steps"):
        loop.draws.finish()


def test_a_count_before_the_first_draw_is_seen():
    draws = Draws(PLAN)
    with pytest.raises(DpbenchError, match="without a draw"):
        draws.counted(3)


def test_the_loop_that_shows_equivalence_is_watched(monkeypatch):
    attach = methods.attach

    def doubled(*args, **options):
        method = attach(*args, **options)
        backward = method.backward
        method.backward = lambda losses, batch: (backward(losses, batch), backward(losses, batch))[0]
        return method

    monkeypatch.setattr(methods, "attach", doubled)
    settings = {"function": "abadi", "against": "auto_v", "bound": 1.0, "optimizers": ["sgd"], "rules": ["paper"], "rows": 32}
    settings |= {"engines": ["bookkeeping"], "precisions": ["float64"], "steps": 2}
    with pytest.raises(DpbenchError, match="examples were counted"):
        equivalence.train(parse(equivalence.Settings, settings, "test"), "bookkeeping", "float64", "sgd", None, 0)

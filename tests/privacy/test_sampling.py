"""Poisson batches and their physical pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbench.errors import DpbenchError
from dpbench.privacy.mechanism import Mechanism, Sampling
from dpbench.privacy.sampling import batches, by_tokens, physical_batches


def plan(size=1000, expected=50.0, steps=200, kind="poisson", **options):
    return Mechanism(Sampling(kind, size, expected), steps, **options)


def test_poisson_batches_vary_around_the_expected_size():
    sizes = np.asarray([len(b) for b in batches(plan())])
    assert abs(sizes.mean() - 50) < 4 * np.sqrt(47.5 / 200)
    assert 0.6 < sizes.var() / 47.5 < 1.5  # binomial; fixed batches would have 0


def test_poisson_draws_examples_independently():
    drawn = np.zeros((400, 100))
    for step, batch in enumerate(batches(plan(100, 20.0, 400))):
        drawn[step, batch] = 1
    rates = drawn.mean(0)
    assert rates.min() > 0.1
    assert rates.max() < 0.32
    joint = (drawn.T @ drawn / 400)[np.triu_indices(100, 1)]
    assert joint.mean() == pytest.approx(0.04, rel=0.05)


def test_small_rates_give_empty_batches():
    sizes = [len(b) for b in batches(plan(100, 0.5))]
    assert 0 in sizes
    assert len(sizes) == 200


def test_batches_depend_on_seed_and_step_alone():
    def first(**options):
        return [b.tolist() for b in batches(plan(steps=5, **options))]

    assert first(seed=1) == first(seed=1)
    assert first(seed=1) != first(seed=2)
    assert first(seed=1, randomness="secret") != first(seed=1, randomness="secret")
    longer = [b.tolist() for b in batches(plan(steps=9, seed=1))]
    assert longer[:5] == first(seed=1)


def test_fixed_batches_see_every_example_once_an_epoch():
    drawn_batches = list(batches(plan(100, 10.0, 25, kind="fixed")))
    assert all(len(b) == 10 for b in drawn_batches)
    assert sorted(np.concatenate(drawn_batches[:10]).tolist()) == list(range(100))
    assert drawn_batches[0].tolist() != drawn_batches[10].tolist()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(0, 30), st.sampled_from(["poisson", "fixed"]))
@settings(deadline=None)
def test_batches_from_a_step_on_are_those_of_the_whole_run(size, expected, steps, start, kind):
    mechanism = plan(size, min(expected, size), steps, kind, seed=3)
    start = min(start, steps)
    all_batches = [b.tolist() for b in batches(mechanism)]
    assert [b.tolist() for b in batches(mechanism, start=start)] == all_batches[start:]


def test_secret_batches_resume_only_where_that_reveals_nothing():
    """A fresh shuffle in the middle of an epoch could draw an example twice in it."""
    secret = plan(100, 10.0, 25, "fixed", randomness="secret")
    assert sorted(np.concatenate(list(batches(secret, start=10))[:10]).tolist()) == list(range(100))
    with pytest.raises(DpbenchError, match="in the middle of an epoch of 10"):
        batches(secret, start=13)
    assert len(list(batches(plan(100, 10.0, 25, randomness="secret"), start=13))) == 12


@pytest.mark.parametrize("start", [-1, 26, 2.0, "3", None, True])
def test_a_start_that_is_no_step_is_named(start):
    with pytest.raises(DpbenchError, match="start"):
        batches(plan(100, 10.0, 25), start=start)


def test_secret_coins_are_the_operating_systems(monkeypatch):
    """All 128 bits that numpy asks for, anew for each batch."""
    asked = []
    monkeypatch.setattr(np.random.bit_generator, "randbits", lambda bits: asked.append(bits) or len(asked), raising=False)
    drawn = list(batches(plan(1000, 50.0, 3, randomness="secret")))
    assert asked == [128] * 3
    assert drawn[0].tolist() == np.flatnonzero(np.random.default_rng(1).random(1000) < 0.05).tolist()


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 64))
def test_pieces_by_tokens_hold_the_budget_and_lose_nothing(lengths, budget):
    lengths = np.asarray(lengths, dtype=int)
    pieces = list(by_tokens(np.arange(len(lengths)), lengths, budget))
    assert sorted(np.concatenate(pieces).tolist() if pieces else []) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * lengths[piece].max() <= budget


@given(st.integers(0, 50), st.integers(1, 9))
def test_physical_batches_lose_nothing(size, piece):
    pieces = list(physical_batches(np.arange(size), piece))
    assert all(0 < len(p) <= piece for p in pieces)
    assert np.concatenate([np.empty(0), *pieces]).tolist() == list(range(size))

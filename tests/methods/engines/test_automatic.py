"""What automatic clipping claims exactly (Bu et al., NeurIPS 2023): AUTO-V as Abadi, and the bound as a learning rate."""

from __future__ import annotations

import pytest
import torch
from small_models import Language, data, losses, mechanism, relative

from dpbench.methods import engines

STEPS = 8
SGD = {"momentum": 0.9}
ADAM = {"eps": 1e-30}  # Adam's eps is the one thing that is not invariant to the gradient's scale


def weights(function, bound, kind, name="bookkeeping", scope="flat", **settings):
    """All weights after training in fp64, noise and batches of one seed."""
    model = Language().double()
    optimizer = kind(model.parameters(), **settings)
    plan = mechanism(scope, function, bound=bound, noise_multiplier=0.3)
    handle = engines.attach(name, model, optimizer, plan)
    fractions = []
    for number in range(STEPS):
        batch = data(5, seed=number)
        batch["weight"] = batch["weight"] + 0.5  # no gradient is zero
        handle.backward(losses, batch)
        optimizer.step()
        optimizer.zero_grad()
        fractions.append(handle.clipped_fraction)
    handle.detach()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), fractions


def moved(actual_weights):
    return relative(actual_weights, torch.cat([p.detach().double().flatten() for p in Language().parameters()]))


PAIRS = [("bookkeeping", "flat"), ("ghost", "flat"), ("fused", "per_layer"), ("loop", "per_tensor"), ("bookkeeping", "per_block")]


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_auto_v_is_abadi_where_all_are_clipped(name, scope):
    """min(R / norm, 1) is R / norm: with SGD the same weights at 1 / R times the learning rate, with Adam at the same."""
    bound = 1e-4
    options = {"name": name, "scope": scope}
    auto, _ = weights("auto_v", 1.0, torch.optim.SGD, lr=0.1, **SGD, **options)
    abadi, clipped = weights("abadi", bound, torch.optim.SGD, lr=0.1 / bound, **SGD, **options)
    assert clipped == [1.0] * STEPS
    assert moved(auto) > 1e-2
    assert relative(abadi, auto) < 1e-9  # fp64, over a few steps
    auto, _ = weights("auto_v", 1.0, torch.optim.Adam, lr=0.01, **ADAM, **options)
    abadi, clipped = weights("abadi", bound, torch.optim.Adam, lr=0.01, **ADAM, **options)
    assert clipped == [1.0] * STEPS
    assert relative(abadi, auto) < 1e-9


def test_auto_v_is_not_abadi_where_some_are_not_clipped():
    auto, _ = weights("auto_v", 2.0, torch.optim.SGD, lr=0.1)
    abadi, clipped = weights("abadi", 2.0, torch.optim.SGD, lr=0.1)
    assert 0 < min(clipped) < 1
    assert relative(abadi, auto) > 1e-3


@pytest.mark.parametrize("function", ["auto_s", "auto_v"])
@pytest.mark.parametrize("bound", [0.1, 7.0])
def test_the_bound_of_automatic_clipping_is_a_rate_of_sgd(function, bound):
    """(R, lr, wd) is (1, lr R, wd / R): the momentum buffer is R times as large, as gradient and decay both are."""
    trained_weights, _ = weights(function, bound, torch.optim.SGD, lr=0.1 / bound, weight_decay=0.02 * bound, **SGD)
    expected_weights, _ = weights(function, 1.0, torch.optim.SGD, lr=0.1, weight_decay=0.02, **SGD)
    assert moved(expected_weights) > 1e-2
    assert relative(trained_weights, expected_weights) < 1e-9
    other, _ = weights(function, bound, torch.optim.SGD, lr=0.1, weight_decay=0.02, **SGD)
    assert relative(other, expected_weights) > 1e-3


@pytest.mark.parametrize("function", ["auto_s", "auto_v"])
@pytest.mark.parametrize("bound", [0.1, 7.0])
def test_adamw_does_not_see_the_bound(function, bound):
    """Its step has no scale and its decay is apart: (R, lr, wd) is (1, lr, wd). Adam's decay is part of the gradient: wd / R."""
    trained_weights, _ = weights(function, bound, torch.optim.AdamW, lr=0.01, weight_decay=0.1, **ADAM)
    expected_weights, _ = weights(function, 1.0, torch.optim.AdamW, lr=0.01, weight_decay=0.1, **ADAM)
    assert moved(expected_weights) > 1e-2
    assert relative(trained_weights, expected_weights) < 1e-9
    trained_weights, _ = weights(function, bound, torch.optim.Adam, lr=0.01, weight_decay=0.1 * bound, **ADAM)
    expected_weights, _ = weights(function, 1.0, torch.optim.Adam, lr=0.01, weight_decay=0.1, **ADAM)
    assert relative(trained_weights, expected_weights) < 1e-9


def test_the_bound_of_abadi_is_more_than_a_learning_rate():
    trained_weights, _ = weights("abadi", 0.1, torch.optim.SGD, lr=1.0, **SGD)
    expected_weights, _ = weights("abadi", 1.0, torch.optim.SGD, lr=0.1, **SGD)
    assert relative(trained_weights, expected_weights) > 1e-3

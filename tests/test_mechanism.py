"""Sensitivity algebra, noise of every allocation, validity."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpbench.errors import DpbenchError
from dpbench.mechanism import Clipping, Mechanism, Sampling, calibrated, noise_stds, sensitivity

POISSON = Sampling("poisson", 1000, 50)
bounds = st.lists(st.floats(0.01, 100), min_size=1, max_size=8)


@given(bounds)
def test_sensitivity_is_the_hypotenuse(values):
    assert sensitivity(values) == pytest.approx(math.sqrt(sum(v * v for v in values)))


@given(st.integers(1, 200), st.floats(0.01, 100))
def test_uniform_bounds_have_the_total_sensitivity(groups, bound):
    assert sensitivity(Clipping(scope="per_layer", bound=bound).bounds(groups)) == pytest.approx(bound)


def test_hand_derived_noise():
    """Bounds 3 and 4, multiplier 2: global 2 x 5; equal 2 x sqrt(2) x C_k; weighted by C_k / sqrt(d_k)."""
    assert noise_stds([3.0, 4.0], 2.0, "global") == pytest.approx([10.0, 10.0])
    assert noise_stds([3.0, 4.0], 2.0, "equal") == pytest.approx([2 * math.sqrt(2) * 3, 2 * math.sqrt(2) * 4])
    scale = math.sqrt(9 + 16)  # C_k / g_k = sqrt(d_k)
    assert noise_stds([3.0, 4.0], 2.0, "weighted", [9, 16]) == pytest.approx([2 * scale * 3 / 3, 2 * scale * 4 / 4])


@given(bounds, st.sampled_from(["global", "equal", "weighted"]), st.floats(0.1, 10))
def test_every_allocation_costs_the_same_privacy(values, allocation, multiplier):
    """Whitened by its noise, the worst change of one example has length 1 / multiplier, however noise is shared."""
    stds = noise_stds(values, multiplier, allocation, [3 + k for k in range(len(values))])
    whitened = math.hypot(*(c / s for c, s in zip(values, stds, strict=True)))
    assert whitened == pytest.approx(1 / multiplier)


def test_weighted_noise_needs_sizes():
    with pytest.raises(DpbenchError, match="sizes"):
        noise_stds([1.0], 1.0, "weighted")
    with pytest.raises(DpbenchError, match="unknown noise allocation"):
        noise_stds([1.0], 1.0, "fair")


def test_calibrated_lands_just_below_the_target():
    mechanism = calibrated(POISSON, 20, Clipping(), 2.0, 1e-5)
    assert 0.99 * 2.0 <= mechanism.epsilon() <= 2.0
    assert mechanism.reasons == []
    assert mechanism.epsilon(10) < mechanism.epsilon()


def test_epsilon_above_the_target_stops():
    with pytest.raises(DpbenchError, match=r"above the target 1\b"):
        Mechanism(POISSON, 20, Clipping(), 0.7, target_epsilon=1.0)


def test_fixed_batches_are_nominal_with_the_reason():
    mechanism = Mechanism(Sampling("fixed", 1000, 50), 20, Clipping(), 1.0, caveats=("tuned on private data",))
    assert mechanism.reasons == ["fixed batches accounted as Poisson", "tuned on private data"]


def test_without_noise_or_clipping_there_is_no_epsilon():
    assert Mechanism(POISSON, 20).epsilon() is None
    assert Mechanism(POISSON, 20, Clipping(), 0.0).epsilon() is None
    with pytest.raises(DpbenchError, match="noise without clipping"):
        Mechanism(POISSON, 20, None, 1.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Clipping(bound=0), "clipping bound"),
        (lambda: Clipping(bound=math.inf), "clipping bound"),
        (lambda: Clipping(gamma=-1), "gamma"),
        (lambda: Clipping(function="autos"), "did you mean 'auto_s'"),
        (lambda: Clipping(scope="layer"), "unknown scope"),
        (lambda: Clipping(tied="per_use"), "per_use"),
        (lambda: Sampling("poisson", 0, 1), "empty"),
        (lambda: Sampling("poisson", 10, 11), "expected_batch_size"),
        (lambda: Mechanism(POISSON, 0), "steps"),
        (lambda: Mechanism(POISSON, 1, delta=0), "delta"),
        (lambda: Mechanism(POISSON, 1, Clipping(), -1), "noise_multiplier"),
    ],
)
def test_nonsense_is_named(make, says):
    with pytest.raises(DpbenchError, match=says):
        make()


def test_the_record_has_what_noise_and_accountant_used():
    described = Mechanism(POISSON, 20, Clipping(bound=3.0), 2.0).describe()
    assert described["noise_std"] == 6.0
    assert described["sensitivity"] == 3.0
    assert described["sampling"]["sample_rate"] == 0.05

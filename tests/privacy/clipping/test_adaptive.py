"""The algebra of adaptive thresholds: what a step costs, where the bounds go, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpbench.errors import DpbenchError
from dpbench.privacy.clipping.adaptive import RANGE, Adaptive
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

budgets = st.floats(1e-4, 0.9999)
multipliers = st.floats(0.05, 50)
groups = st.integers(1, 500)


@given(budgets, multipliers, groups)
def test_sums_and_counts_together_cost_one_gaussian(budget, sigma, count):
    """1 / sigma_new^2 + (sqrt(K) / 2)^2 / sigma_b^2 = 1 / sigma^2: their whitened sensitivities add in squares."""
    adaptive = Adaptive(0.5, budget=budget)
    of_sums = adaptive.gradient_noise_multiplier(sigma)
    of_counts = adaptive.count_std(sigma, count)
    assert 1 / of_sums**2 + count / (2 * of_counts) ** 2 == pytest.approx(1 / sigma**2, rel=1e-12)


@pytest.mark.parametrize(("budget", "percent"), [(0.01, 0.5), (0.1, 5.4)])
def test_what_the_thresholds_cost_in_gradient_noise(budget, percent):
    """He et al.: a budget of 1 % raises the noise of gradients by 0.5 %, one of 10 % by 5.4 %."""
    raised = 100 * (Adaptive(0.5, budget=budget).gradient_noise_multiplier(1.0) - 1)
    assert round(raised, 1) == percent


def test_the_composition_costs_what_the_mechanism_says():
    """RDP of Gaussians adds exactly, so that of (sums, counts) is that of one Gaussian of `noise_multiplier`."""
    import dp_accounting
    from dp_accounting import rdp

    def spent(*multipliers):
        accountant = rdp.RdpAccountant()
        accountant.compose(dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(m) for m in multipliers]), 7)
        return accountant.get_epsilon(1e-5)

    sigma, count, adaptive = 2.0, 13, Adaptive(0.6, budget=0.2)
    both = spent(adaptive.gradient_noise_multiplier(sigma), adaptive.count_std(sigma, count) / (math.sqrt(count) / 2))
    assert both == pytest.approx(spent(sigma), rel=1e-9)


def test_epsilon_is_that_of_the_whole_noise_multiplier():
    sampling, fixed = Sampling("poisson", 1000, 50), Clipping(scope="per_layer")
    adaptive = Clipping(scope="per_layer", adaptive=Adaptive(0.5, budget=0.1))
    plans = [Mechanism(sampling, 20, clipping, 1.5) for clipping in (fixed, adaptive)]
    assert plans[0].epsilon() == plans[1].epsilon()
    assert [plan.noise_multiplier for plan in plans] == [1.5, 1.5]
    assert plans[0].gradient_noise_multiplier == 1.5
    assert plans[1].gradient_noise_multiplier == pytest.approx(1.5 / math.sqrt(0.9))
    described = plans[1].describe()
    assert described["clipping"]["adaptive"] == {"quantile": 0.5, "rate": 0.3, "budget": 0.1, "rescale": False}
    assert described["noise_std"] == pytest.approx(1.5 / math.sqrt(0.9))


def test_one_step_by_hand():
    """fraction 0.75 of a quantile of 0.5 at rate 0.2: the bound shrinks by exp(-0.05); 0.25: it grows by exp(0.05)."""
    moved = Adaptive(0.5, rate=0.2).moved([2.0, 4.0], [0.75, 0.25], 1.0)
    assert moved == pytest.approx([2 * math.exp(-0.05), 4 * math.exp(0.05)])


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=6), st.booleans(), st.floats(1e-3, 1e3))
def test_bounds_stay_finite_and_positive_whatever_is_released(fractions, rescale, whole_bound):
    adaptive = Adaptive(0.5, rescale=rescale)
    bounds = [whole_bound / math.sqrt(len(fractions))] * len(fractions)
    for _ in range(3):
        bounds = adaptive.moved(bounds, fractions, whole_bound)
    low, high = (RANGE**-2 / len(fractions), 1.0) if rescale else (1 / RANGE, RANGE)
    assert all(low * (1 - 1e-9) <= b / whole_bound <= high * (1 + 1e-9) for b in bounds)
    if rescale:
        assert math.hypot(*bounds) == pytest.approx(whole_bound, rel=1e-12)


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_bounds_converge_to_the_quantile_without_noise(quantile, start):
    """Norms of 2 000 examples are log-normal; below the quantile the released fraction is too small and the bound grows. A fixed
    point has a fraction within one example of the quantile, and the rate leaves it within a hundredth of one."""
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(0, [0.5, 1.0, 1.5], (2000, 3))) * [1.0, 3.0, 0.2]
    adaptive, bounds = Adaptive(quantile), [start] * 3
    for _ in range(400):
        bounds = adaptive.moved(bounds, (norms <= bounds).mean(0), start * math.sqrt(3))
    for bound, column in zip(bounds, norms.T, strict=True):
        assert np.quantile(column, quantile - 0.005) <= bound <= np.quantile(column, quantile + 0.005)


def test_rescaling_moves_the_ratios_alone():
    free, tied = Adaptive(0.5), Adaptive(0.5, rescale=True)
    fractions = [0.9, 0.1, 0.4]
    loose, held = free.moved([1.0, 1.0, 1.0], fractions, math.sqrt(3)), tied.moved([1.0, 1.0, 1.0], fractions, math.sqrt(3))
    assert [b / held[0] for b in held] == pytest.approx([b / loose[0] for b in loose])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Adaptive(0.0), "quantile 0.0 is not between"),
        (lambda: Adaptive(1.0), "quantile 1.0 is not between"),
        (lambda: Adaptive(0.5, budget=0.0), "budget 0.0 is not between"),
        (lambda: Adaptive(0.5, budget=1.0), "budget 1.0 is not between"),
        (lambda: Adaptive(0.5, rate=0.0), "rate 0.0 is not a positive"),
        (lambda: Adaptive(math.nan), "quantile nan"),
        (lambda: Clipping(function="auto_v", adaptive=Adaptive(0.5)), "adaptive thresholds with auto_v: it brings every example"),
        (lambda: Clipping(function="auto_s", adaptive=Adaptive(0.5)), "adaptive thresholds with auto_s"),
        (lambda: Clipping(thresholds=[]), "holds no threshold"),
        (lambda: Clipping(thresholds=[1.0, 0.0]), "threshold 0.0 of number 1"),
        (lambda: Clipping(thresholds={"head": -1.0}), "threshold -1.0 of head"),
        (lambda: Clipping(thresholds=[1.0, math.inf]), "threshold inf"),
        (lambda: Clipping(scope="per_layer", devices=2), "per_layer has no use for devices 2"),
        (lambda: Clipping(thresholds=[1.0, 2.0]).bounds(3, ["a", "b", "c"]), "2 thresholds for 3 groups: a, b, c"),
        (lambda: Clipping(thresholds={"a": 1.0, "bb": 2.0}).bounds(2, ["a", "b"]), "unknown group 'bb'"),
        (lambda: Clipping(thresholds={"a": 1.0}).bounds(2, ["a", "b"]), "no threshold for group b"),
    ],
)
def test_nonsense_is_named(make, says):
    with pytest.raises(DpbenchError, match=says):
        make()


def test_given_thresholds_make_the_bound():
    by_number, by_label = (
        Clipping(scope="per_layer", thresholds=[3.0, 4.0]),
        Clipping(scope="per_layer", thresholds={"b": 4.0, "a": 3.0}),
    )
    assert (by_number.bound, by_label.bound) == (5.0, 5.0)
    assert by_number.bounds(2, ["a", "b"]) == by_label.bounds(2, ["a", "b"]) == [3.0, 4.0]

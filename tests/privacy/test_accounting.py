"""Two accountants, one facade; calibration from below."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spending import epsilon_of

from dpbench.errors import DpbenchError
from dpbench.privacy import accounting

SETTING = {"sample_rate": 0.02, "steps": 30, "delta": 1e-5}


@pytest.mark.parametrize("target", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("relation", ["add_or_remove", "replace_one"])
def test_calibration_is_within_one_percent_from_below(target, relation):
    noise_multiplier = accounting.calibrate(target, relation=relation, **SETTING)
    spent = epsilon_of(noise_multiplier=noise_multiplier, relation=relation, **SETTING)
    assert 0.99 * target <= spent <= target


def test_a_calibration_is_kept_and_a_damaged_one_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path))
    first = accounting.calibrate(4.0, **SETTING)
    (file,) = (tmp_path / "calibrations").iterdir()
    kept = json.loads(file.read_text())
    monkeypatch.setattr(accounting, "_search", lambda *_: pytest.fail("calibrated twice"))
    assert accounting.calibrate(4.0, **SETTING) == first == kept["noise_multiplier"]
    file.write_text("{")
    monkeypatch.setattr(accounting, "_search", lambda *_: 7.0)
    assert accounting.calibrate(4.0, **SETTING) == 7.0


@given(st.floats(0.6, 5), st.floats(0.001, 0.3), st.integers(1, 50))
@settings(max_examples=10, deadline=None)
def test_more_noise_costs_less_and_more_steps_more(noise_multiplier, sample_rate, steps):
    def spent(z, t):
        return epsilon_of(noise_multiplier=z, sample_rate=sample_rate, steps=t, delta=1e-5)

    assert spent(noise_multiplier * 1.2, steps) <= spent(noise_multiplier, steps) + 1e-9
    assert spent(noise_multiplier, steps + 5) >= spent(noise_multiplier, steps) - 1e-9


def test_pld_is_at_most_rdp():
    for z in (0.6, 1.0, 4.0):
        pld = epsilon_of(noise_multiplier=z, **SETTING)
        assert pld <= epsilon_of(noise_multiplier=z, accountant="rdp", **SETTING)


def test_the_whole_batch_is_the_plain_gaussian():
    """sigma 1, one step, delta 1e-5: the analytic Gaussian mechanism's epsilon is 4.377."""
    assert epsilon_of(noise_multiplier=1.0, sample_rate=1.0, steps=1, delta=1e-5) == pytest.approx(4.377, abs=5e-3)


@pytest.mark.parametrize("noise_multiplier", [0.02, 0.1, 0.25])
def test_far_too_little_noise_has_its_epsilon_in_seconds(noise_multiplier):
    """Where the grid grows: the analytic Gaussian mechanism in logarithms, of which the answer is an upper bound within 0.5 %."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu, delta = math.sqrt(3) / noise_multiplier, 1e-5  # three steps of the whole batch are one with sqrt(3) times the sensitivity

    def beyond(epsilon):
        first, second = norm.logcdf(mu / 2 - epsilon / mu), epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return first + math.log1p(-math.exp(second - first)) - math.log(delta)

    exact_epsilon = brentq(beyond, mu**2 / 2, mu**2 / 2 + 10 * mu)
    least_epsilon = epsilon_of(noise_multiplier=noise_multiplier, sample_rate=1.0, steps=3, delta=delta)
    assert exact_epsilon <= least_epsilon <= 1.005 * exact_epsilon


def test_published_multipliers_come_out():
    """Derived independently for the GLUE recipe: SST-2, 202 steps of 1000 of 67,349, delta n^-1.1, epsilon 3."""
    noise_multiplier = accounting.calibrate(3.0, sample_rate=1000 / 67349, steps=202, delta=67349**-1.1)
    assert noise_multiplier == pytest.approx(0.77, abs=0.01)


def test_replace_one_doubles_in_pld_and_is_unsupported_in_rdp():
    add = epsilon_of(noise_multiplier=2.0, **SETTING)
    replace = epsilon_of(noise_multiplier=2.0, relation="replace_one", **SETTING)
    assert replace > 1.5 * add
    with pytest.raises(accounting.Unsupported):
        epsilon_of(noise_multiplier=2.0, relation="replace_one", accountant="rdp", **SETTING)


def test_nothing_spent_before_the_first_step():
    assert epsilon_of(noise_multiplier=1.0, sample_rate=0.1, steps=0, delta=1e-5) == 0.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"delta": 0.0}, "delta"),
        ({"relation": "swap"}, "relation"),
        ({"accountant": "prv"}, "unknown accountant"),
    ],
)
def test_arguments_out_of_range_are_named(change, says):
    with pytest.raises(DpbenchError, match=says):
        epsilon_of(**({"noise_multiplier": 1.0, **SETTING} | change))


def test_targets_out_of_reach_are_named():
    with pytest.raises(DpbenchError, match="not a positive number"):
        accounting.calibrate(-1.0, **SETTING)
    with pytest.raises(DpbenchError, match="out of reach"):
        accounting.calibrate(1e-6, sample_rate=1.0, steps=100_000, delta=1e-12)


@pytest.mark.parametrize("relation", ["add_or_remove", "replace_one"])
def test_a_coarse_grid_says_at_most_a_step_a_release_more(relation):
    """What lets a calibration ask it first: the noise multiplier found is that of the fine grid alone."""
    for noise_multiplier, steps in ((0.6, 3), (1.1, 40)):
        values = {"noise_multiplier": noise_multiplier, "sample_rate": 0.03, "steps": steps, "delta": 1e-5, "relation": relation}
        stage = (accounting.Release(noise_multiplier, 0.03, steps),)
        coarse = accounting.epsilon(stage, delta=1e-5, relation=relation, coarser=16)
        fine = epsilon_of(**values)
        assert fine <= coarse <= fine + 16 * steps * accounting._interval(noise_multiplier)


def test_one_laplace_release_is_the_textbooks():
    """Pure epsilon is sensitivity over scale; PLD is at most that, and near it for a small delta."""
    spent = epsilon_of(noise_multiplier=0.5, sample_rate=1.0, steps=1, delta=1e-9, noise="laplace")
    assert 1.99 < spent <= 2.001


def test_laplace_is_calibrated_and_kept_apart_from_gaussian():
    noise_multiplier = accounting.calibrate(3.0, noise="laplace", **SETTING)
    spent = epsilon_of(noise_multiplier=noise_multiplier, noise="laplace", **SETTING)
    assert 2.97 <= spent <= 3.0
    assert noise_multiplier != accounting.calibrate(3.0, **SETTING)


def test_unknown_noise_is_named():
    with pytest.raises(DpbenchError, match="unknown noise 'uniform'"):
        epsilon_of(noise_multiplier=1.0, noise="uniform", **SETTING)


# The accountant's edges. Right answers: Balle and Wang (2018), theorem 8, in 60 digits.


def closed_form(sensitivity_over_std, delta):
    """Epsilon of one Gaussian release: least e with Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m) <= delta."""
    from mpmath import exp, mp, mpf, ncdf

    mp.dps = 60
    m = mpf(sensitivity_over_std)

    def spent(e):
        return ncdf(m / 2 - e / m) - exp(e) * ncdf(-m / 2 - e / m)

    if spent(mpf(0)) <= delta:
        return 0.0
    low, high = mpf(0), m * m / 2 + 40 * m
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return float(high)


@pytest.mark.parametrize(
    ("noise_multiplier", "steps", "delta"),
    [
        (4.0, 10, 1e-12),
        (4.0, 10, 1e-14),
        (692.0, 1, 1e-5),
        (6649.0, 1, 1e-5),
        (3e4, 1, 1e-5),
        (1e5, 1, 1e-5),
        (300.0, 100, 1e-6),
        (0.01, 1, 1e-5),
        (1e-3, 1, 1e-5),
        (0.05, 4, 1e-8),
        (1e6, 10**6, 1e-5),
    ],
)
def test_epsilon_is_within_one_percent_above_the_closed_form(noise_multiplier, steps, delta):
    right = closed_form(math.sqrt(steps) / noise_multiplier, delta)
    spent = epsilon_of(noise_multiplier=noise_multiplier, sample_rate=1.0, steps=steps, delta=delta)
    assert right * (1 - 1e-9) <= spent <= 1.01 * right


@pytest.mark.parametrize("relation", ["add_or_remove", "replace_one"])
@pytest.mark.parametrize("delta", [9e-15, 1e-15, 1e-16, 1e-40, 1e-300])
def test_a_delta_below_what_pld_carries_is_one_error(delta, relation):
    setting = {"sample_rate": 1.0, "steps": 10, "delta": delta, "relation": relation}
    for ask in (
        accounting.calibrate,
        lambda noise_multiplier, **options: epsilon_of(noise_multiplier=noise_multiplier, **options),
    ):
        with pytest.raises(DpbenchError, match=r"delta .* is below 1e-14"):
            ask(3.0, **setting)
    upper = epsilon_of(noise_multiplier=4.0, accountant="rdp", **(setting | {"relation": "add_or_remove"}))
    assert math.isfinite(upper)


@pytest.mark.parametrize(
    ("target", "steps", "delta"),
    [
        (0.01, 1, 1e-5),
        (0.003, 1, 1e-5),
        (1e-4, 1, 1e-5),
        (0.01, 100, 1e-6),
        (0.003, 10_000, 1e-9),
        (1001.0, 1, 1e-5),
        (1e5, 3, 1e-6),
        (4e5, 1, 1e-5),
    ],
)
def test_calibration_keeps_its_promise_at_both_ends(target, steps, delta):
    """At most the target and within 1 % of it, and of the closed form's noise."""
    noise_multiplier = accounting.calibrate(target, sample_rate=1.0, steps=steps, delta=delta)
    assert 0.99 * target <= epsilon_of(noise_multiplier=noise_multiplier, sample_rate=1.0, steps=steps, delta=delta) <= target
    assert 0.98 * target <= closed_form(math.sqrt(steps) / noise_multiplier, delta) <= target


@pytest.mark.parametrize(("target", "rate", "steps"), [(0.002, 1e-3, 100), (2000.0, 0.1, 5)])
@pytest.mark.parametrize("relation", ["add_or_remove", "replace_one"])
def test_calibration_keeps_its_promise_under_sampling(target, rate, steps, relation):
    setting = {"sample_rate": rate, "steps": steps, "delta": 1e-6, "relation": relation}
    noise_multiplier = accounting.calibrate(target, **setting)
    assert 0.99 * target <= epsilon_of(noise_multiplier=noise_multiplier, **setting) <= target


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_a_search_without_an_answer_ends_and_says_what_was_tried(noise):
    with pytest.raises(DpbenchError, match=r"out of reach at sample_rate 1, 100000 steps.*1e\+06 spends more"):
        accounting.calibrate(1e-6, sample_rate=1.0, steps=100_000, delta=1e-12)
    with pytest.raises(DpbenchError, match=r"by no noise multiplier from 0\.001 on"):
        accounting.calibrate(1e9, sample_rate=1.0, steps=1, delta=1e-5, noise=noise)


def test_a_search_that_jumps_over_its_target_ends(monkeypatch):
    """As if epsilon were 1 below a noise multiplier of 2, and 0 from there on."""
    monkeypatch.setattr(accounting, "epsilon", lambda stages, **_: float(stages[-1].noise_multiplier < 2))
    with pytest.raises(DpbenchError, match=r"no noise multiplier has an epsilon within 1% of 0\.5"):
        accounting._search(0.5, 1.0, 1, 1e-5, "add_or_remove", "gaussian")


@pytest.mark.parametrize("noise_multiplier", [1e-4, 9.9e-4, 1.1e6, 1e300])
def test_noise_beyond_what_pld_answers_for_is_named(noise_multiplier):
    with pytest.raises(DpbenchError, match=r"PLD answers from 0\.001 to 1e\+06"):
        epsilon_of(noise_multiplier=noise_multiplier, **SETTING)


@given(
    st.one_of(st.floats(1e-3, 1e-1), st.floats(0.1, 10), st.floats(10, 1e4)),
    st.one_of(st.just(1.0), st.floats(1e-4, 1)),
    st.integers(0, 5),
    st.floats(1e-14, 0.5),
    st.sampled_from(["add_or_remove", "replace_one"]),
)
@settings(max_examples=6, deadline=None)
def test_epsilon_is_finite_and_not_negative_where_defined(noise_multiplier, rate, steps, delta, relation):
    spent = epsilon_of(noise_multiplier=noise_multiplier, sample_rate=rate, steps=steps, delta=delta, relation=relation)
    assert 0 <= spent < math.inf


@pytest.mark.parametrize("kept", ["NaN", "Infinity", "-1", "0", '"1.5"', "true", "null", "[1]"])
def test_a_kept_calibration_that_is_no_noise_is_made_again(kept, monkeypatch, tmp_path):
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(accounting, "_search", lambda *_: 7.0)
    accounting.calibrate(4.0, **SETTING)
    (file,) = (tmp_path / "calibrations").iterdir()
    file.write_text(file.read_text().replace("7.0", kept))
    monkeypatch.setattr(accounting, "_search", lambda *_: 8.0)
    assert accounting.calibrate(4.0, **SETTING) == 8.0


def test_a_composition_of_nothing_or_of_nonsense_is_named():
    with pytest.raises(DpbenchError, match="no stage"):
        accounting.epsilon((), delta=1e-5)
    with pytest.raises(DpbenchError, match="unknown neighbouring relation"):
        accounting.epsilon((accounting.Release(1.0, 0.1, 1),), delta=1e-5, relation="replace-one")

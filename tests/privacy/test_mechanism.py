"""Sensitivity algebra, noise of every allocation, validity."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spending import epsilon_of

from dpbench.errors import DpbenchError
from dpbench.privacy import accounting
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling, calibrated, noise_stds, sensitivity
from dpbench.privacy.sampling import batches

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
    mechanism = calibrated(Mechanism(POISSON, 20, Clipping()), 2.0)
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


# A mechanism is checked when it is made.

NAN, INF = math.nan, math.inf
GOOD = Mechanism(POISSON, 20, Clipping("auto_s", "per_layer"), 1.0)

NAMES = {
    "kind": (lambda value: replace(POISSON, kind=value), ["poisson", "fixed"]),
    "function": (lambda value: Clipping(function=value), ["abadi", "auto_s", "auto_v"]),
    "scope": (lambda value: Clipping(scope=value, devices=None), ["flat", "per_layer", "per_block", "per_tensor", "per_device"]),
    "allocation": (lambda value: Clipping(allocation=value), ["global", "equal", "weighted"]),
    "tied": (lambda value: Clipping(scope="per_layer", tied=value), ["sum", "per_use"]),
    "relation": (lambda value: replace(GOOD, relation=value), ["add_or_remove", "replace_one"]),
    "randomness": (lambda value: replace(GOOD, randomness=value), ["seeded", "secret"]),
    "noise": (lambda value: replace(GOOD, noise=value), ["gaussian", "laplace"]),
    "calibrated relation": (lambda value: calibrated(Mechanism(POISSON, 20, Clipping(), relation=value), 2.0), ["replace_one"]),
    "calibrated noise": (lambda value: calibrated(Mechanism(POISSON, 20, Clipping(), noise=value), 2.0), ["laplace"]),
    "calibrated randomness": (lambda value: calibrated(Mechanism(POISSON, 20, Clipping(), randomness=value), 2.0), ["secret"]),
    "accountant": (lambda value: GOOD.epsilon(accountant=value), ["pld", "rdp"]),
    "accounting relation": (
        lambda value: epsilon_of(noise_multiplier=1.0, sample_rate=0.1, steps=0, delta=1e-5, relation=value),
        ["add_or_remove", "replace_one"],
    ),
    "noise_stds": (lambda value: noise_stds([1.0], 1.0, value, [1]), ["global", "equal", "weighted"]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "miswrite", [str.upper, str.title, lambda s: s[1:], lambda s: s + " ", lambda s: s.replace("_", "-") + "."]
)
def test_a_miswritten_name_is_refused_with_the_right_one(name, miswrite):
    """Each of them would be the other choice, or the default, if it were compared with one name alone."""
    make, known = NAMES[name]
    for right in known:
        with pytest.raises(DpbenchError, match=f"did you mean '{right}'"):
            make(miswrite(right))


@given(
    st.sampled_from(sorted(NAMES)), st.one_of(st.text(max_size=8), st.none(), st.booleans(), st.integers(), st.lists(st.text()))
)
@settings(max_examples=200, deadline=None)
def test_no_other_value_stands_for_a_name(name, value):
    make, known = NAMES[name]
    every = [*known, "add_or_remove", "gaussian", "seeded"]
    if value not in every:
        with pytest.raises(DpbenchError, match="unknown"):
            make(value)


NO_NUMBERS = [None, "1", [1], True, NAN, INF, -INF, -1, -0.5, 1j]
NUMBERS = {
    "dataset_size": (lambda value: Sampling("poisson", value, 1), [2.5, 1e3, 0, 2**60]),
    "expected_batch_size": (lambda value: Sampling("poisson", 1000, value), [0, 0.0, 1000.1]),
    "expected_batch_size of fixed batches": (lambda value: Sampling("fixed", 1000, value), [0.5, 10.9, 999.999]),
    "clipping bound": (lambda value: Clipping(bound=value), [0]),
    "clipping gamma": (lambda value: Clipping("auto_s", gamma=value), []),
    "clipping devices": (lambda value: Clipping(scope="per_device", devices=value), [0, 2.0]),
    "threshold": (lambda value: Clipping(scope="per_layer", thresholds=[1.0, value]), [0]),
    "adaptive quantile": (lambda value: Adaptive(value), [0, 1]),
    "adaptive rate": (lambda value: Adaptive(0.5, rate=value), [0]),
    "adaptive budget": (lambda value: Adaptive(0.5, budget=value), [0, 1]),
    "adaptive rescale": (lambda value: Adaptive(0.5, rescale=value), [0, 1, "false"]),
    "steps": (lambda value: Mechanism(POISSON, value), [0, 2.5, 20.0, "20", 2**32]),
    "noise_multiplier": (lambda value: Mechanism(POISSON, 20, Clipping(), value), []),
    "delta": (lambda value: Mechanism(POISSON, 20, Clipping(), 1.0, delta=value), [0, 1, 2.0]),
    "seed": (lambda value: Mechanism(POISSON, 20, seed=value), [0.0, 2**53 + 1, 2**70]),
    "target_epsilon": (lambda value: Mechanism(POISSON, 20, Clipping(), 1.0, target_epsilon=value), [0]),
    "caveats": (lambda value: Mechanism(POISSON, 20, caveats=value), ["one text", ("",), (1,)]),
    "sampling": (lambda value: Mechanism(value, 20), ["poisson", {}]),
    "clipping": (lambda value: Mechanism(POISSON, 20, value), [0, "", {}, "abadi"]),
    "clipping adaptive": (lambda value: Clipping(adaptive=value), [{}, 0.5]),
    "start": (lambda value: batches(GOOD, start=value), [21, 2.0]),
    "calibrated target": (lambda value: calibrated(Mechanism(POISSON, 20, Clipping()), value), [0]),
    "calibrated steps": (lambda value: calibrated(Mechanism(POISSON, value, Clipping()), 2.0), [0, 2.5]),
    "calibrated delta": (lambda value: calibrated(Mechanism(POISSON, 20, Clipping(), delta=value), 2.0), [0, 1, 1e-15]),
    "release": (lambda value: accounting.Release(value, 0.1, 10), [0]),
    "release's rate": (lambda value: accounting.Release(1.0, value, 10), [0, 1.01]),
    "release's steps": (lambda value: accounting.Release(1.0, 0.1, value), [2.5, "10"]),
}
CALLED = {
    "dataset_size": "dataset",
    "expected_batch_size of fixed batches": "expected_batch_size",
    "calibrated target": "target epsilon",
    "calibrated steps": "steps",
    "calibrated delta": "delta",
    "release": "noise_multiplier",
    "release's rate": "sample_rate",
    "release's steps": "steps",
}
NONE_IS_FINE = {"clipping devices", "target_epsilon", "clipping", "clipping adaptive"}
TRUE_IS_FINE = {"adaptive rescale"}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_none_is_named(name):
    make, more = NUMBERS[name]
    for value in [*NO_NUMBERS, *more]:
        if (value is None and name in NONE_IS_FINE) or (value is True and name in TRUE_IS_FINE):
            continue
        with pytest.raises(DpbenchError, match=CALLED.get(name, name)):
            make(value)


def test_replace_checks_as_making_does():
    with pytest.raises(DpbenchError, match="unknown randomness"):
        replace(GOOD, randomness="Secret")
    with pytest.raises(DpbenchError, match="steps"):
        replace(GOOD, steps=2.5)
    with pytest.raises(DpbenchError, match="unknown scope"):
        replace(GOOD.clipping, scope="Flat")


def test_numbers_of_numpy_are_numbers_and_are_recorded_as_such():
    plan = Mechanism(
        Sampling("poisson", np.int64(1000), np.float32(50)),
        np.int32(20),
        Clipping(bound=np.float64(2)),
        np.float32(1),
        seed=np.uint8(3),
    )
    assert plan == Mechanism(Sampling("poisson", 1000, 50.0), 20, Clipping(bound=2.0), 1.0, seed=3)
    assert json.loads(json.dumps(plan.describe()))["sampling"]["dataset_size"] == 1000


def test_given_thresholds_cannot_change_under_a_mechanism():
    thresholds, by_label = [3.0, 4.0], {"a": 3.0, "b": 4.0}
    listed, labelled = Clipping(scope="per_layer", thresholds=thresholds), Clipping(scope="per_layer", thresholds=by_label)
    thresholds[0] = by_label["a"] = 1e9
    assert listed.bounds(2) == labelled.bounds(2, ["a", "b"]) == [3.0, 4.0]
    assert listed.bound == labelled.bound == 5.0


def test_a_target_without_noise_is_refused():
    for clipping in (None, Clipping()):
        with pytest.raises(DpbenchError, match="target_epsilon 3 without noise"):
            Mechanism(POISSON, 20, clipping, 0.0, target_epsilon=3.0)


def test_arguments_are_wrong_before_any_search(monkeypatch):
    monkeypatch.setattr(accounting, "calibrate", lambda *_, **__: pytest.fail("searched first"))
    with pytest.raises(DpbenchError, match="seed"):
        calibrated(Mechanism(POISSON, 20, Clipping(), seed=-1), 2.0)
    with pytest.raises(TypeError, match="randomnes"):
        calibrated(Mechanism(POISSON, 20, Clipping(), randomnes="secret"), 2.0)


@given(st.integers(1, 10**6), st.floats(1e-14, 0.999))
@settings(max_examples=100, deadline=None)
def test_a_delta_of_one_example_in_full_is_a_reason(size, delta):
    """Publishing one random row is (0, 1/n) differential privacy."""
    reasons = Mechanism(Sampling("poisson", size, 1), 1, Clipping(), 1.0, delta=delta).reasons
    assert (reasons == []) == (delta < 1 / size)
    assert all("is not below 1/n" in reason and f"n = {size}" in reason for reason in reasons)


def test_delta_is_no_reason_without_an_epsilon():
    assert Mechanism(POISSON, 1, delta=0.5).reasons == []


# The relation and delta reach the accountant.


@pytest.mark.parametrize("relation", ["add_or_remove", "replace_one"])
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_epsilon_is_that_of_the_mechanisms_relation_and_delta(relation, delta):
    """Asked of dp-accounting directly, as are calibration and the guard against the target."""
    import dp_accounting
    from dp_accounting import pld

    neighbours = {
        "add_or_remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": dp_accounting.NeighboringRelation.REPLACE_ONE,
    }
    theirs = pld.PLDAccountant(neighbours[relation])
    theirs.compose(dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.5)), 20)
    spent = theirs.get_epsilon(delta)
    plan = Mechanism(POISSON, 20, Clipping(), 1.5, delta, relation)
    assert plan.epsilon() == pytest.approx(spent, rel=1e-9)
    replace(plan, target_epsilon=spent * 1.001)
    with pytest.raises(DpbenchError, match="above the target"):
        replace(plan, target_epsilon=spent * 0.999)


def test_a_calibration_is_of_its_relation_and_delta(monkeypatch, tmp_path):
    """Also from the cache: nothing calibrated for one is met by another."""
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path))
    setting = {"sample_rate": 0.05, "steps": 20}
    noise_multipliers = {}
    for _ in range(2):
        for relation, delta in itertools.product(("add_or_remove", "replace_one"), (1e-5, 1e-8)):
            noise_multiplier = accounting.calibrate(2.0, delta=delta, relation=relation, **setting)
            spent = epsilon_of(noise_multiplier=noise_multiplier, delta=delta, relation=relation, **setting)
            assert 1.98 <= spent <= 2.0
            assert noise_multipliers.setdefault((relation, delta), noise_multiplier) == noise_multiplier
    assert len(set(noise_multipliers.values())) == 4


def test_every_argument_of_a_calibration_is_in_its_key(monkeypatch, tmp_path):
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path))
    base = {"target": 2.0, "sample_rate": 0.05, "steps": 20, "delta": 1e-5, "relation": "add_or_remove", "noise": "gaussian"}
    others = {"target": 3.0, "sample_rate": 0.06, "steps": 21, "delta": 1e-6, "relation": "replace_one", "noise": "laplace"}
    monkeypatch.setattr(accounting, "_search", lambda *arguments: float(len(seen.append(arguments) or seen)))
    seen: list = []
    for change in [{}, *({name: value} for name, value in others.items())]:
        settings_of_one = base | change
        accounting.calibrate(settings_of_one.pop("target"), **settings_of_one)
    assert len(seen) == 7, "a calibration for other arguments was taken from the cache"

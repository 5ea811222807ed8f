"""Every discovered engine against the fp64 loop: the checks of `checks.py`, over whatever discovery finds."""

from __future__ import annotations

import checks
import pytest
import torch
from checks import limits, pairs
from small_models import MODELS, Language, data, gradients, losses, mechanism, plain, relative

from dpbench import plugins

EACH = pytest.mark.parametrize(("name", "scope"), list(pairs()))
FUNCTIONS = list(plugins.discover("function"))


def without(limit):
    """All pairs but those of peers that declare this limit."""
    return pytest.mark.parametrize(("name", "scope"), [p for p in pairs() if limit not in limits(p.values[0])])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("function", FUNCTIONS)
@EACH
def test_parity_with_the_oracle(name, scope, function, model, poisoned_empty):
    checks.parity(name, scope, function, model)


@EACH
def test_accumulation_changes_nothing(name, scope):
    checks.accumulation(name, scope)


@EACH
def test_an_empty_batch_releases_noise_alone(name, scope):
    checks.empty_step(name, scope)


@EACH
def test_every_tensor_gets_fresh_noise_of_its_std(name, scope):
    checks.noise(name, scope)


@without("half")
def test_bf16_under_autocast(name, scope):
    checks.bf16(name, scope)


@pytest.mark.parametrize("mode", ["bfloat16", "float16", "autocast"])
@without("half")
def test_in_half_precision_no_example_exceeds_its_bound(name, scope, mode):
    checks.half_precision(name, scope, mode)


@without("bad_example")
def test_one_bad_example_adds_nothing(name, scope):
    checks.bad_example(name, scope)


@without("bad_example")
def test_every_example_non_finite_stops(name, scope):
    checks.all_bad(name, scope)


@EACH
def test_the_input_gradient_is_plain_autograds(name, scope):
    checks.input_gradient(name, scope)


@EACH
def test_detach_leaves_nothing_behind(name, scope):
    checks.detach(name, scope)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("function", FUNCTIONS)
@EACH
def test_one_example_moves_the_sum_by_at_most_the_sensitivity(name, scope, function, tied):
    checks.sensitivity(name, scope, function, tied)


@EACH
def test_no_example_of_a_search_exceeds_the_sensitivity(name, scope):
    checks.sensitivity_by_search(name, scope)


@pytest.mark.parametrize("name", list(plugins.discover("engine")))
def test_only_a_peer_has_limits_and_each_has_a_reason(name):
    extra = plugins.get("engine", name).extra
    declared = extra.get("limits", {})
    assert not declared or "package" in extra
    assert set(declared) <= set(checks.LIMITS)
    assert all(isinstance(reason, str) and len(reason) > 10 for reason in declared.values())


@pytest.mark.parametrize("name", ["fused", "bookkeeping"])
def test_tied_per_use(name):
    plan = mechanism("per_layer", "abadi", tied="per_use", bound=0.3)
    expected, _ = gradients("loop", Language(tied=True), plan, [data(5)], dtype=torch.float64)
    actual, handle = gradients(name, Language(tied=True), plan, [data(5)])
    assert relative(actual, expected) < 1e-5
    each = handle.bounds[0]
    assert handle.sensitivity == pytest.approx((3 * each**2 + (2 * each) ** 2) ** 0.5)


def test_tied_sum_is_not_tied_per_use():
    batches = [data(5)]
    summed, _ = gradients("fused", Language(tied=True), mechanism("per_layer", bound=0.3), batches)
    apart, _ = gradients("fused", Language(tied=True), mechanism("per_layer", bound=0.3, tied="per_use"), batches)
    assert relative(summed, apart) > 1e-3


def test_nonprivate_is_plain_autograd():
    model = Language().double()
    actual, _ = gradients("nonprivate", model, plain(), [data(4), data(3, seed=1)], dtype=torch.float64)
    (losses(model, data(4)).sum() + losses(model, data(3, seed=1)).sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]) / 4
    assert relative(actual, expected) < 1e-12

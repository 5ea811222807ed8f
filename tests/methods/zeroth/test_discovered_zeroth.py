"""Every discovered zeroth-order method, and wrong ones in a folder of DPBENCH_PLUGINS, which must fail the same checks."""

from __future__ import annotations

import pytest
import zeroth_checks as checks

from dpbench import plugins

EACH = pytest.mark.parametrize("name", list(plugins.discover("zeroth")))


@pytest.mark.parametrize(("kind", "bound"), [("gaussian", 0.3), ("gaussian", 1e6), ("sphere", 0.3)])
@EACH
def test_a_step_is_that_of_exact_bounded_derivatives(name, kind, bound):
    checks.parity(name, kind, bound if bound > 1 or not checks.private(name) or checks.one_number(name) else 2.0)


@EACH
def test_the_mean_over_directions_is_the_gradient(name):
    checks.unbiased(name)


@EACH
def test_physical_batches_change_nothing(name):
    checks.physical_batches(name)


@EACH
def test_no_searched_example_moves_the_sum_beyond_the_bound(name):
    checks.bound_by_search(name)


@EACH
def test_noise_has_the_declared_size_and_law_in_every_step(name):
    checks.noise(name)


@EACH
def test_the_directions_say_nothing_of_the_noise(name):
    checks.noise_is_secret(name)


@EACH
def test_a_bad_example_contributes_nothing(name):
    checks.bad_example(name)


@EACH
def test_an_empty_step_is_noise_alone(name):
    checks.empty_step(name)


METHOD = '''
"""Of a stranger."""
PLUGIN = {{"kind": "zeroth", "name": "planted", "version": 1, "summary": "of a stranger", "private": True, {declared}}}
'''
WRONG = {
    "its noise follows from the public direction": (
        '"clips": "scalar", "noise": "gaussian", "noise_of_directions": True',
        checks.noise_is_secret,
    ),
    "it declares a law that it does not have": ('"clips": "vector", "noise": "laplace"', checks.noise),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_declaration_fails(fault, tmp_path, monkeypatch):
    declared, check = WRONG[fault]
    (tmp_path / "planted.py").write_text(METHOD.format(declared=declared), encoding="utf-8")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    with pytest.raises(AssertionError):
        check("planted")


def test_a_right_one_outside_the_package_passes(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(METHOD.format(declared='"clips": "scalar", "noise": "laplace"'), encoding="utf-8")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    for check in (checks.noise, checks.noise_is_secret, checks.bad_example, checks.empty_step, checks.bound_by_search):
        check("planted")


def forgets(method, replacement):
    """Put a fault into the trainer that all methods share."""

    def plant(monkeypatch):
        monkeypatch.setattr(checks.ZerothOrder, method, replacement(getattr(checks.ZerothOrder, method)))

    return plant


TRAINERS = {
    "noise is forgotten": (forgets("_released", lambda _: lambda self, total, number: total), checks.empty_step),
    "noise is forgotten where there are examples": (
        forgets("_released", lambda old: lambda self, total, number: total if total else old(self, total, number)),
        checks.noise,
    ),
    "the bound is doubled": (
        forgets("_bounded", lambda _: lambda self, d, number: (None, float(d.clamp(-2, 2).sum()))),
        checks.bound_by_search,
    ),
    "the sum is clipped, not each example": (
        forgets("_bounded", lambda _: lambda self, d, number: (None, float(d.sum().clamp(-0.3, 0.3)))),
        lambda name: checks.parity(name, "gaussian", 0.3),
    ),
    "the step goes uphill": (
        forgets("_released", lambda old: lambda self, total, number: -old(self, total, number)),
        lambda name: checks.parity(name, "gaussian", 0.3),
    ),
}


@pytest.mark.parametrize("fault", TRAINERS)
def test_a_wrong_trainer_fails(fault, monkeypatch):
    plant, check = TRAINERS[fault]
    plant(monkeypatch)
    with pytest.raises((AssertionError, TypeError)):
        check("dpzero")

"""Every discovered clipping function and scope; wrong ones in a folder of DPBENCH_PLUGINS must fail the same checks."""

from __future__ import annotations

import clipping_checks as checks
import pytest
import torch
from torch import nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.privacy.clipping.probe import check_factor
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

FUNCTIONS = list(plugins.discover("function"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_factor_keeps_the_bound_at_every_norm(name, dtype):
    checks.factor_keeps_the_bound(name, dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_factor_passes_the_probe_of_engines(name):
    checks.factor_passes_the_probe(name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_threshold_leaves_alone_what_is_within_the_bound(name):
    checks.threshold_leaves_alone_what_is_within(name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_factor_depends_on_its_own_norm_alone(name):
    checks.each_example_is_scaled_by_itself(name)


@pytest.mark.parametrize("name", list(plugins.discover("scope")))
def test_a_scope_puts_each_layer_into_one_group(name):
    checks.scope_is_a_partition(name)


FUNCTION = '''
"""Of a stranger."""
import torch

PLUGIN = {{"kind": "function", "name": "planted", "version": 1, "summary": "of a stranger", "threshold": True}}


def factor(norms, bound, gamma):
    return {factor}
'''
SCOPE = '''
"""Of a stranger."""
PLUGIN = {{"kind": "scope", "name": "planted", "version": 1, "summary": "of a stranger"}}


def groups(layers):
    return {groups}
'''
WRONG_FACTORS = {
    "0.1 % too large": "(1.001 * bound / norms).clamp(max=1.0)",
    "not clipped below a norm of 1e-30": "torch.where(norms < 1e-30, 1e35, (bound / norms).clamp(max=1.0))",
    "over the bound just above it": "torch.where(norms < 1.0005 * bound, 1.0, bound / norms)",
    "never clipped beyond 1e30": "torch.where(norms > 1e30, 1.0, (bound / norms).clamp(max=1.0))",
    "negative": "-(bound / norms).clamp(max=1.0)",
    "infinite at 0": "bound / norms",
    "no number at 0": "(norms * (bound / norms) / norms).clamp(max=1.0)",
}


@pytest.fixture
def plant(tmp_path, monkeypatch):
    def planted(source):
        (tmp_path / "planted.py").write_text(source, encoding="utf-8")
        monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))

    return planted


@pytest.mark.parametrize("fault", WRONG_FACTORS)
def test_a_wrong_function_fails_and_no_engine_takes_it(fault, plant):
    plant(FUNCTION.format(factor=WRONG_FACTORS[fault]))
    with pytest.raises(AssertionError):
        checks.factor_keeps_the_bound("planted", torch.float32)
    with pytest.raises(DpbenchError, match="clipping function 'planted' breaks its bound"):
        checks.factor_passes_the_probe("planted")
    model = nn.Linear(3, 2)
    plan = Mechanism(Sampling("poisson", 50, 5.0), 3, Clipping("planted"), 1.0)
    for engine in ("bookkeeping", "loop"):
        with pytest.raises(DpbenchError, match="clipping function 'planted' breaks its bound: at norm"):
            engines.attach(engine, model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


def test_one_factor_for_all_examples_is_refused():
    with pytest.raises(DpbenchError, match=r"'mean' gives \[1\] for norms"):
        check_factor("mean", lambda norms, bound, gamma: (bound / norms.max()).reshape(1), [1.0], 0.01)


def test_a_function_that_looks_at_other_examples_fails(plant):
    plant(FUNCTION.format(factor="(bound / norms.max()).expand(len(norms)).clamp(max=1.0)"))
    with pytest.raises(AssertionError):
        checks.each_example_is_scaled_by_itself("planted")


def test_a_function_without_the_threshold_that_it_declares_fails(plant):
    plant(FUNCTION.format(factor="0.5 * (bound / norms).clamp(max=1.0)"))
    checks.factor_passes_the_probe("planted")
    with pytest.raises(AssertionError):
        checks.threshold_leaves_alone_what_is_within("planted")


@pytest.mark.parametrize(
    "groups", ["[layers[1:] or layers]", "[layers, layers[:1]]", "[layers, []]", "[[name] for name in set(layers)][:2]"]
)
def test_a_scope_that_drops_or_doubles_a_layer_fails(groups, plant):
    plant(SCOPE.format(groups=groups))
    with pytest.raises(AssertionError):
        checks.scope_is_a_partition("planted")


def test_right_ones_outside_the_package_pass(plant, tmp_path):
    plant(FUNCTION.format(factor="0.5 * (bound / (norms + bound))").replace(', "threshold": True', ""))
    for dtype in (torch.float32, torch.bfloat16):
        checks.factor_keeps_the_bound("planted", dtype)
    checks.threshold_leaves_alone_what_is_within("planted")
    checks.each_example_is_scaled_by_itself("planted")

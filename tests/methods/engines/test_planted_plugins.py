"""Engines that are wrong, in a folder of DPBENCH_PLUGINS: discovery finds them, and each fails the checks of all engines."""

from __future__ import annotations

import textwrap

import checks
import pytest
from checks import pairs

from dpbench import plugins
from dpbench.errors import DpbenchError

ENGINE = '''
"""An engine of a stranger."""
import torch
from dpbench.methods.engines import {base}
from dpbench.kernels.leaf import accumulation_dtype

PLUGIN = {{"kind": "engine", "name": "planted", "version": 1, "summary": "of a stranger", "private": True,
          "scopes": ["{scope}"], "adaptive": True{more}}}


class Engine({base}.Engine):
    name = "planted"
    scopes = ("{scope}",)
    functions = None
'''


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """plant(source) puts a file into a folder of plug-ins of its own."""

    def planted(source: str) -> None:
        (tmp_path / "planted.py").write_text(source, encoding="utf-8")
        monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))

    return planted


def engine(body: str = "", base: str = "bookkeeping", scope: str = "per_layer", more: str = "") -> str:
    return ENGINE.format(base=base, scope=scope, more=more) + textwrap.indent(textwrap.dedent(body), "    ")


SIGN = """
def sum_of(self, parameter):
    return super().sum_of(parameter)

def _release(self):
    for total in self._sums.values():
        total.neg_()
    super()._release()
"""
ONE_LAYER_UNCLIPPED = """
def factor(self, group):
    bounds = self.bounds
    self.bounds = [1e6 if number == len(bounds) - 1 else bound for number, bound in enumerate(bounds)]
    factors = super().factor(group)
    self.bounds = bounds
    return factors
"""
ROUNDED_SUMS = """
def _accumulate(self, losses, batch):
    values = super()._accumulate(losses, batch)
    for total in self._sums.values():
        total.copy_(total.bfloat16())
    return values
"""
BAD_EXAMPLE = """
def _accumulate(self, losses, batch):
    values = super()._accumulate(losses, batch)
    for total in self._sums.values():
        total.add_(0 * values.sum())
    return values
"""
UNCOUNTED = """
def count(self, norms, bounds, groups=None):
    super().count(torch.nan_to_num(norms, nan=0.0, posinf=0.0), bounds, groups)
"""
NOISE_AT_ONCE = """
def _before_step(self):
    self.noise = type(self.noise)(self.mechanism)
    super()._before_step()
"""
NO_NOISE_ON_ONE = """
def _set_noise(self):
    super()._set_noise()
    self.noise_stds[id(next(iter(self.trainable.values())))] = 0.0
"""
NO_NOISE_ON_EMPTY = """
def _release(self):
    if self._sums:
        return super()._release()
    for parameter in self.trainable.values():
        parameter.grad = torch.zeros_like(parameter)
"""
MEAN = """
def _accumulate(self, losses, batch):
    return super()._accumulate(lambda net, examples: losses(net, examples) / 2, batch)
"""
HOOK_STAYS = """
def detach(self):
    super().detach()
    next(self.model.children()).register_forward_hook(lambda *_: None)
"""
INPUT = """
def _accumulate(self, losses, batch):
    def scaled(net, examples):
        handle = net.block.register_full_backward_hook(lambda _m, inputs, _o: (inputs[0] * 0.5,))
        values = losses(net, examples)
        self._removed = handle
        return values
    values = super()._accumulate(scaled, batch)
    self._removed.remove()
    return values
"""
LOOSE_BOUND = """
def _set_bounds(self, labels, group_bounds):
    super()._set_bounds(labels, group_bounds)
    self.bounds = [1.01 * bound for bound in self.bounds]
"""

PAIR = ("planted", "per_layer")
PARITY = [lambda: checks.parity(*PAIR, "abadi", "plain")]
SENSITIVITY = [lambda: checks.sensitivity(*PAIR, "abadi", tied=False), lambda: checks.sensitivity_by_search(*PAIR)]
PLANTED = {
    "the sign of every gradient flipped": (SIGN, PARITY),
    "one layer is not clipped": (ONE_LAYER_UNCLIPPED, [*PARITY, *SENSITIVITY]),
    "the bound is 1 % too large": (LOOSE_BOUND, [*PARITY, *SENSITIVITY]),
    "losses are halved": (MEAN, [lambda: checks.parity(*PAIR, "auto_s", "plain")]),
    "sums of half precision": (ROUNDED_SUMS, [lambda: checks.half_precision(*PAIR, "bfloat16"), *PARITY]),
    "a bad example goes through": (BAD_EXAMPLE, [lambda: checks.bad_example(*PAIR)]),
    "a bad example is not counted": (UNCOUNTED, [lambda: checks.bad_example(*PAIR), lambda: checks.all_bad(*PAIR)]),
    "every step has the same noise": (NOISE_AT_ONCE, [lambda: checks.noise(*PAIR)]),
    "one tensor gets no noise": (NO_NOISE_ON_ONE, [lambda: checks.noise(*PAIR)]),
    "an empty step has no noise": (NO_NOISE_ON_EMPTY, [lambda: checks.empty_step(*PAIR)]),
    "a hook is left behind": (HOOK_STAYS, [lambda: checks.detach(*PAIR)]),
    "the gradient of the layer below is halved": (INPUT, [lambda: checks.input_gradient(*PAIR)]),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_wrong_engine_fails_the_checks_of_discovered_engines(fault, plant):
    body, failing = PLANTED[fault]
    plant(engine(body))
    assert PAIR in [tuple(p.values) for p in pairs()], "discovery does not find it"
    for check in failing:
        with pytest.raises((AssertionError, pytest.fail.Exception, DpbenchError)):  # a guard that stops it is as good
            check()


def test_an_engine_cannot_declare_itself_exempt(plant):
    """Limits are for peers: without a package they count for nothing."""
    plant(engine(BAD_EXAMPLE, more=', "limits": {"bad_example": "it is not done here"}'))
    assert checks.limits("planted") == {}
    with pytest.raises(AssertionError):
        checks.bad_example(*PAIR)


@pytest.mark.parametrize(("base", "scope"), [("bookkeeping", "flat"), ("fused", "per_layer"), ("vmap", "per_tensor")])
def test_a_right_engine_outside_the_package_passes(base, scope, plant):
    plant(engine(base=base, scope=scope, more=', "functional": True' if base == "vmap" else ""))
    pair = ("planted", scope)
    checks.parity(*pair, "auto_s", "tied")
    checks.sensitivity_by_search(*pair, cases=3, climbs=1)
    for check in (checks.accumulation, checks.empty_step, checks.noise, checks.bf16, checks.bad_example, checks.all_bad):
        check(*pair)
    for check in (checks.input_gradient, checks.detach):
        check(*pair)
    checks.half_precision(*pair, "autocast")

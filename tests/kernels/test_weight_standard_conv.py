"""Convolutions with a standardised weight: the module, and its per-example gradients against the fp64 oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from dpbench.kernels.conv.cpu import ConvLeaf
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.weight_standard_conv.cpu import WeightStandardConvLeaf
from dpbench.kernels.weight_standard_conv.module import EPS, WeightStandardConv2d, standardised
from dpbench.methods.engines.layers import find_layers
from dpbench.privacy.clipping import abadi

SHAPES = {
    "plain": {"args": (3, 5, 3), "options": {"padding": 1}},
    "stride": {"args": (3, 5, 3), "options": {"stride": 2, "padding": 1}},
    "one": {"args": (4, 6, 1), "options": {"stride": 2}},
    "groups": {"args": (4, 6, 3), "options": {"groups": 2, "bias": False}},
    "dilated": {"args": (2, 3, 2), "options": {"dilation": 2}},
}


def module_and_use(name, dtype=torch.float64):
    torch.manual_seed(0)
    shape = SHAPES[name]
    module = WeightStandardConv2d(*shape["args"], **shape["options"]).to(dtype)
    x = torch.randn(4, shape["args"][0], 7, 6, dtype=dtype)
    return module, Use(x, torch.randn_like(module(x)))


def per_example(module, x, g):
    """Name -> [B, ...], fp64, by autograd through torch's mean and norm, an example at a time."""
    rows = {name: [] for name, _ in module.named_parameters()}
    for x_i, g_i in zip(x.double().split(1), g.double().split(1), strict=True):
        parameters = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
        flat = parameters["weight"].flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        weight = (flat / torch.sqrt(flat.norm(dim=1, keepdim=True) ** 2 + EPS)).view_as(parameters["weight"])
        out = conv2d(x_i, weight, parameters.get("bias"), module.stride, module.padding, module.dilation, module.groups)
        for name, value in zip(parameters, torch.autograd.grad((out * g_i).sum(), list(parameters.values())), strict=True):
            rows[name].append(value)
    return {name: torch.stack(values) for name, values in rows.items()}


def relative(actual, expected):
    return float((actual.double() - expected).norm() / expected.norm())


def test_a_standardised_weight_has_mean_0_and_norm_1_a_channel():
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64) * 2 + 1
    standard_weight, _ = standardised(weight)
    assert standard_weight.flatten(1).mean(1).abs().max() < 1e-14
    # EPS is 1e-4 of a squared norm of about 4 x 36
    torch.testing.assert_close(standard_weight.flatten(1).norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=1e-6, atol=0)
    constant, _ = standardised(torch.ones(1, 2, 3, 3))
    assert torch.equal(constant, torch.zeros_like(constant))


def test_shift_and_scale_of_the_weight_change_nothing():
    module, use = module_and_use("plain")
    before = module(use.x)
    with torch.no_grad():
        module.weight.mul_(300.0).add_(5.0)
    # what is left of EPS: 1e-4 of a squared norm of about 4 before, of nothing after
    torch.testing.assert_close(module(use.x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_per_example_gradients_are_the_oracles(name):
    module, use = module_and_use(name)
    leaf, expected_gradients = WeightStandardConvLeaf(module), per_example(module, use.x, use.g)
    squared = sum(w.flatten(1).square().sum(1) for w in expected_gradients.values())
    assert relative(leaf.sq_norms(use), squared) < 1e-12
    factors = torch.rand(4, dtype=torch.float64)
    into = Sums({n: torch.zeros_like(p) for n, p in leaf.parameters.items()})
    leaf.add_weighted(use, factors, into)
    for key, value in expected_gradients.items():
        assert relative(into[key], torch.einsum("b,b...->...", factors, value)) < 1e-12


@pytest.mark.parametrize("name", SHAPES)
def test_fp32_is_within_its_rounding(name):
    """Sums of some hundred products in fp32: 1e-5, as for every other leaf."""
    module, use = module_and_use(name, torch.float32)
    leaf, expected_gradients = WeightStandardConvLeaf(module), per_example(module, use.x, use.g)
    bound = float(sum(w.flatten(1).square().sum(1) for w in expected_gradients.values()).sqrt().median())
    factor = Factor("abadi", bound, 0.0, abadi.factor)
    names = {n: torch.full_like(p, float("nan")) for n, p in leaf.parameters.items()}
    into = Sums(names, names)
    norms = leaf.clip_into(use, factor, into)
    assert 0 < int((norms > bound).sum()) < 4
    for key, value in expected_gradients.items():
        assert relative(into[key], torch.einsum("b,b...->...", factor(norms).double(), value)) < 1e-5


def test_frozen_weight_or_bias_has_no_gradient():
    module, use = module_and_use("plain")
    expected_gradients = per_example(module, use.x, use.g)
    module.weight.requires_grad_(False)
    leaf = WeightStandardConvLeaf(module)
    assert list(leaf.parameters) == ["bias"]
    assert relative(leaf.sq_norms(use), expected_gradients["bias"].square().sum(1)) < 1e-12


def test_engines_find_its_leaf_and_not_the_fallback():
    (layer,) = find_layers(nn.Sequential(WeightStandardConv2d(2, 3, 3)))
    assert type(layer.leaf) is WeightStandardConvLeaf


def test_a_gradient_without_the_pull_back_is_caught(monkeypatch):
    """The planted fault: the plain convolution's gradient, as if the weight were not standardised."""
    module, use = module_and_use("plain")
    monkeypatch.setattr(WeightStandardConvLeaf, "pulled_back", ConvLeaf.pulled_back)
    with pytest.raises(AssertionError):
        assert (
            relative(
                WeightStandardConvLeaf(module).sq_norms(use),
                sum(w.flatten(1).square().sum(1) for w in per_example(module, use.x, use.g).values()),
            )
            < 1e-12
        )

"""Kernels in C: any size and layout, nothing outside bounds, the same bits for any number of threads, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from gradients import of_linear, per_example
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.kernels import compiled
from dpbench.kernels.layernorm import native as norms_native
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.linear import cpu
from dpbench.kernels.linear import native as linear_native
from dpbench.methods import engines
from dpbench.methods.engines.layers import find_layers
from dpbench.privacy.clipping import abadi
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

WHY = linear_native.NativeLinearLeaf.refuses(nn.Linear(1, 1))
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

# tokens, rows, columns: less than a tile, odd, split by columns, more columns and more tokens than are packed at a time
SHAPES = [(1, 1, 1), (3, 5, 7), (33, 77, 131), (16, 48, 96), (40, 24, 500), (5, 9, 2100), (600, 100, 50), (9000, 10, 60)]


def inputs(batch, tokens, rows, columns):
    torch.manual_seed(tokens + rows)
    return torch.randn(batch, tokens, rows), torch.randn(batch, tokens, columns)


def factor(name="abadi", bound=1.0):
    return Factor(name, bound, 0.01, plugins.get("function", name).load().factor)


def clip(left, right, weight, written=False, one=None, side=0, bias=None):
    """One single pass into `weight`; returns the norms."""
    return linear_native._products(left, right, weight, written, one or factor(), side, bias)


def oracle_clip(left, right, one):
    """([B] norms, the clipped sum), fp64."""
    products, _ = of_linear(right, left)
    norms = products.flatten(1).square().sum(1).sqrt()
    return norms, torch.einsum("b,brc->rc", one(norms), products)


def near(actual, expected, tolerance=1e-5):
    return float((actual.double() - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("name", compiled.FUNCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_single_pass_and_norms_at_every_kind_of_size(shape, name, poisoned_empty):
    left, right = inputs(3, *shape)
    bound = float(of_linear(right, left)[0].flatten(1).norm(dim=1).median())  # some are clipped
    norms, expected = oracle_clip(left, right, factor(name, bound))
    assert near(linear_native.product_sq_norms(left, right).sqrt(), norms)
    for written in (False, True):
        weight = torch.randn(shape[1:]) if written else torch.full(shape[1:], math.nan)
        before = weight.double() if written else 0.0
        assert near(clip(left, right, weight, written, factor(name, bound)), norms)
        assert near(weight, before + expected)


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 40),
    rows=st.integers(1, 70),
    columns=st.integers(1, 120),
    threads=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_any_size_by_any_number_of_threads_gives_the_same_bits(batch, tokens, rows, columns, threads):
    left, right = inputs(batch, tokens, rows, columns)
    norms, expected = oracle_clip(left, right, factor())
    results = []
    before = torch.get_num_threads()
    for number in (1, threads):
        torch.set_num_threads(number)
        weight = torch.full((rows, columns), math.nan)
        results.append((clip(left, right, weight), weight))
    torch.set_num_threads(before)
    assert near(results[0][0], norms, 2e-5)
    terms = float((factor()(norms) * norms).sum())  # of which the sum may cancel, in one dimension even to 0
    assert float((results[0][1] - expected).norm()) <= 2e-5 * terms
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_is_written_outside(shape, monkeypatch):
    """Guard cells around the sum, the buffer and the room that C asks for."""
    guarded = []

    def guard(*size):
        count, pad = math.prod(size), 64
        guarded_buffer = torch.full((count + 2 * pad,), 77.0)
        guarded.append((guarded_buffer, pad, count))
        return guarded_buffer[pad : pad + count].view(size)

    monkeypatch.setattr(linear_native, "_room", lambda x, y: guard(linear_native._library().dpbench_products_room(*shape, 2)))
    left, right = inputs(3, *shape)
    weight, buffer = guard(*shape[1:]), guard(*shape[1:])
    real_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: buffer if a[0] == weight.shape else real_empty(*a, **k))
    torch.set_num_threads(2)
    clip(left, right, weight)
    assert near(weight, oracle_clip(left, right, factor())[1])
    for guarded_buffer, pad, count in guarded:
        assert torch.equal(guarded_buffer[:pad], torch.full((pad,), 77.0))
        assert torch.equal(guarded_buffer[pad + count :], torch.full((pad,), 77.0))


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_layouts_that_are_not_contiguous(kind):
    torch.manual_seed(0)
    module = nn.Linear(40, 24) if kind is nn.Linear else Conv1D(24, 40)
    wide = torch.randn(3, 64, 100)
    layouts = {
        "a slice of each row": (wide[:, :, 10:50], wide[:, :, 60:84]),
        "tokens in the last dimension": (torch.randn(3, 40, 64).mT, torch.randn(3, 24, 64).mT),
        "one row for all tokens": (torch.randn(3, 1, 40).expand(3, 64, 40), torch.randn(3, 64, 1).expand(3, 64, 24)),
        "every second token": (torch.randn(3, 128, 40)[:, ::2], torch.randn(3, 128, 24)[:, ::2]),
    }
    assert not cpu.gram_is_cheaper(64, 40, 24)
    for name, (x, g) in layouts.items():
        leaf = find_layers(module, "native")[0].leaf
        assert type(leaf).__module__ == linear_native.__name__
        weights, biases = of_linear(x, g)
        norms = (weights.flatten(1).square().sum(1) + biases.square().sum(1)).sqrt()
        into = Sums({n: torch.zeros_like(p) for n, p in leaf.parameters.items()})
        assert near(leaf.clip_into(Use(x, g), factor(bound=50.0), into), norms), name
        scale = abadi.factor(norms, 50.0, 0.0)
        expected = torch.einsum("b,boi->oi", scale, weights)
        assert near(into["weight"].detach(), expected.T if kind is Conv1D else expected), name
        assert near(into["bias"].detach(), scale @ biases), name


@pytest.mark.parametrize("written", [False, True])
def test_examples_that_are_not_finite_are_left_out(written):
    left, right = inputs(4, 20, 30, 40)
    left[0, 3, 2], right[2, 1, 1] = math.nan, math.inf
    weight = torch.ones(30, 40) if written else torch.full((30, 40), math.nan)
    norms = clip(left, right, weight, written)
    assert torch.isfinite(norms).tolist() == [False, True, False, True]
    expected = oracle_clip(left[[1, 3]], right[[1, 3]], factor())[1]
    assert near(weight, expected + float(written))
    weight = torch.ones(30, 40) if written else torch.full((30, 40), math.nan)
    clip(left[[0, 2]], right[[0, 2]], weight, written)
    assert torch.equal(weight, torch.full((30, 40), float(written)))


def test_an_empty_batch():
    weight = torch.full((3, 4), math.nan)
    assert len(clip(torch.randn(0, 5, 3), torch.randn(0, 5, 4), weight)) == 0
    assert not weight.any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", [1, 2])
def test_a_bias_is_in_the_same_norm(side, shape):
    left, right = inputs(3, *shape)
    left[1, 0, 0] = math.nan
    good = [0, 2]
    biases = (left, right)[side - 1].double().sum(1)
    norms = (of_linear(right, left)[0].flatten(1).square().sum(1) + biases.square().sum(1)).sqrt()
    bound = float(norms[good].min()) * 1.1
    weight, bias = torch.empty(shape[1:]), torch.ones(shape[side])
    actual_norms = clip(left, right, weight, one=factor(bound=bound), side=side, bias=bias)
    assert near(actual_norms[good], norms[good])
    assert not math.isfinite(actual_norms[1])
    scale = abadi.factor(norms[good], bound, 0.0)
    assert near(weight, torch.einsum("b,brc->rc", scale, of_linear(right, left)[0][good]))
    assert near(bias, 1.0 + scale @ biases[good])


@given(norm=st.just(0.0) | st.floats(1e-12, 1e6), bound=st.floats(1e-6, 1e3), gamma=st.sampled_from([0.0, 0.01]))
@settings(max_examples=100, deadline=None)
def test_the_factors_are_those_of_the_clipping_functions(norm, bound, gamma):
    """Of a gradient that is one number."""
    norm = float(torch.tensor(norm))
    for name in compiled.FUNCTIONS:
        form = plugins.get("function", name).load().factor
        weight = torch.empty(1, 1)
        clip(torch.full((1, 1, 1), norm), torch.ones(1, 1, 1), weight, one=Factor(name, bound, gamma, form))
        alone = form(torch.tensor(norm, dtype=torch.float64), bound, gamma)
        assert float(weight) == pytest.approx(float(alone) * norm, rel=1e-6, abs=1e-30)


def test_another_function_is_asked():
    left, right = inputs(3, 9, 10, 11)
    seen = []

    def halves(norms, bound, gamma):
        seen.append(float(norms))
        return torch.full_like(norms, 0.5 * bound)

    weight = torch.empty(10, 11)
    norms = clip(left, right, weight, one=Factor("halves", 2.0, 0.0, halves))
    assert seen == pytest.approx(norms.tolist(), rel=1e-6)
    assert near(weight, of_linear(right, left)[0].sum(0))


def test_an_error_of_another_function_is_not_lost():
    def wrong(norms, bound, gamma):
        raise ZeroDivisionError("not a factor")

    with pytest.raises(ZeroDivisionError, match="not a factor"):
        clip(*inputs(2, 3, 4, 5), torch.empty(4, 5), one=Factor("wrong", 1.0, 0.0, wrong))


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (5, 33), (64, 16), (65, 16), (200, 384)])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True)])
def test_norm_gradients(tokens, width, centred, kinds, poisoned_empty):
    torch.manual_seed(width)
    x, g = torch.randn(5, tokens, width) * 3 + 1, torch.randn(5, tokens, width)
    if centred:
        scale, shift = per_example(nn.LayerNorm(width, 1e-3), x, g).values()
    else:
        wide, shift = x.double(), g.double().sum(1)
        scale = (g * wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt()).sum(1)
    expected = torch.stack([value for value, has in zip((scale, shift), kinds, strict=True) if has], 1)
    gradients = norms_native.norm_gradients(x, g, 1e-3, centred, *kinds)
    assert gradients.shape == expected.shape
    assert float((gradients - expected).norm()) <= 1e-5 * max(float(expected.norm()), 1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = norms_native.norm_gradients(x, g, 1e-3, centred, *kinds)
    torch.set_num_threads(before)
    assert torch.equal(gradients, alone)


def test_norm_gradients_of_no_example():
    assert norms_native.norm_gradients(torch.empty(0, 3, 4), torch.empty(0, 3, 4), 1e-5, True, True, True).shape == (0, 2, 4)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Sequential(nn.Linear(3, 4).double()), "layer 0 .Linear.: weight is float64"),
        (nn.Sequential(nn.LayerNorm(3).bfloat16()), "layer 0 .LayerNorm.: weight is bfloat16"),
        (nn.Sequential(nn.RMSNorm(3, device="meta")), "layer 0 .RMSNorm.: its tensors are on meta"),
    ],
)
def test_what_kernels_in_c_cannot_serve_is_named(module, match):
    with pytest.raises(DpbenchError, match=match):
        find_layers(module, "native")
    assert "native" not in type(find_layers(module, "auto")[0].leaf).__module__


def test_layers_that_have_no_kernel_in_c_are_served_by_torch():
    layers = find_layers(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)), "native")
    assert [type(layer.leaf).__module__.rsplit(".", 1)[-1] for layer in layers] == ["cpu", "native"]


def test_without_a_compiler(monkeypatch):
    """auto takes torch's way; named, the kernels are an error that says why."""
    monkeypatch.setenv("DPBENCH_NATIVE", "0")
    for cached in (linear_native._library, norms_native._library):
        cached.cache_clear()
    try:
        assert type(find_layers(nn.Linear(3, 4), "auto")[0].leaf) is cpu.LinearLeaf
        with pytest.raises(DpbenchError, match=r"layer .model. .Linear.: DPBENCH_NATIVE is 0"):
            find_layers(nn.Linear(3, 4), "native")
    finally:
        for cached in (linear_native._library, norms_native._library):
            cached.cache_clear()


def test_an_engine_without_kernels_of_ours_refuses_them():
    model = nn.Linear(3, 4)
    plan = Mechanism(Sampling("poisson", 16, 4), 1, Clipping(), 1.0)
    with pytest.raises(DpbenchError, match="engine 'loop' does not use kernels of ours"):
        engines.attach("loop", model, torch.optim.SGD(model.parameters(), lr=0.1), plan, kernels="native")


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_of_torch(threads):
    """A second OpenMP runtime in the process would fight torch's for the cores."""
    torch.set_num_threads(threads)
    assert linear_native._library().omp_get_max_threads() == threads


def test_suits_float32_on_the_cpu_alone():
    ones = torch.ones(2)
    assert compiled.suits(ones, ones)
    assert not compiled.suits(ones, ones.bfloat16())
    assert not compiled.suits(ones.to("meta"))

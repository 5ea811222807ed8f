"""Every kernel against its fp64 oracle: norms, weighted sums and the single pass, at odd sizes and on poisoned memory."""

from __future__ import annotations

import pytest
import torch
from gradients import of_linear
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracles import (
    FUNCTIONS,
    MAKERS,
    SHAPES,
    embedding,
    fresh,
    hold,
    linear,
    norms_of,
    of_sum,
    of_terms,
    oracle,
    relative,
    sums,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from dpbench import errors
from dpbench.kernels.embedding.cpu import EmbeddingLeaf
from dpbench.kernels.fallback.cpu import FallbackLeaf
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.linear import cpu as linear_cpu
from dpbench.kernels.linear import native as linear_native
from dpbench.kernels.linear.cpu import Conv1DLeaf, LinearLeaf
from dpbench.kernels.rmsnorm.cpu import RMSNormLeaf
from dpbench.privacy.clipping import abadi


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_fp32_parity(kind, shape, poisoned_empty):
    hold(*MAKERS[kind](shape))


@pytest.mark.parametrize("kind", MAKERS)
def test_bf16_parity_on_the_same_rounded_inputs(kind):
    hold(*MAKERS[kind]((4, 6), torch.bfloat16), tolerance=2e-2)


@pytest.mark.parametrize("way", [0.0, float("inf")], ids=["direct", "gram"])
def test_both_ways_of_a_linear_norm(way, monkeypatch):
    monkeypatch.setattr(linear_cpu, "GRAM_BELOW", way)
    monkeypatch.setattr(linear_cpu, "gram_is_shorter", lambda *_: way > 0)
    monkeypatch.setattr(linear_native, "GRAM_BELOW", way)
    monkeypatch.setattr(linear_native, "gram_is_shorter", lambda *_: way > 0)
    for shape in SHAPES:
        for kind in ("linear", "linear_in_c"):
            if kind in MAKERS:
                hold(*MAKERS[kind](shape))


def test_gram_is_chosen_by_cost():
    assert linear_cpu.gram_is_cheaper(16, 384, 384)
    assert not linear_cpu.gram_is_cheaper(512, 384, 1536)
    assert linear_cpu.gram_is_shorter(128, 384, 1536)
    assert not linear_cpu.gram_is_shorter(512, 384, 384)
    assert linear_native.gram_is_cheaper(16, 384, 384)
    assert not linear_native.gram_is_cheaper(64, 384, 1536)
    assert linear_native.gram_is_shorter(128, 384, 1536)
    assert not linear_native.gram_is_shorter(512, 384, 8192)


@given(batch=st.integers(1, 5), tokens=st.integers(1, 9), inputs=st.integers(1, 8), outputs=st.integers(1, 8), bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_linear_at_any_size(batch, tokens, inputs, outputs, bias):
    hold(
        *linear((batch, tokens), inputs=inputs, outputs=outputs, bias=bias),
        tolerance=2e-5,
        error=of_sum if outputs > 1 else of_terms,
    )


@pytest.mark.parametrize(("eps", "dtype"), [(None, torch.float32), (None, torch.bfloat16), (0.5, torch.float32)])
def test_rmsnorm_without_eps_takes_that_of_its_input(eps, dtype):
    torch.manual_seed(0)
    module = nn.RMSNorm(8, eps=eps)
    x = (torch.randn(3, 4, 8) * 1e-2).to(dtype)
    out = module(x)
    g = torch.randn_like(out).detach()
    (expected_gradient,) = torch.autograd.grad((out * g).sum(), [module.weight])
    into = {"weight": torch.zeros(8)}
    RMSNormLeaf(module).add_weighted(Use(x, g), torch.ones(3), Sums(into))
    assert relative(into["weight"], expected_gradient) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_rmsnorm_of_transformers():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    leaf = RMSNormLeaf(LlamaRMSNorm(11, eps=1e-3))
    hold(leaf, Use(torch.randn(4, 5, 11), torch.randn(4, 5, 11)), oracle)


def test_norms_of_large_tensors_do_not_drift():
    values = torch.rand(3_000_017)
    exact = values.double().square().sum()
    assert abs(float(linear_cpu.squared(values)) / float(exact) - 1) < 4e-6  # of the square: half of it in the norm


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), torch.randn(4, 3, 5, 5)),
        (nn.GroupNorm(2, 4), torch.randn(4, 4, 3, 3)),
        (nn.RMSNorm(6), torch.randn(4, 5, 6)),
        (nn.ConvTranspose1d(3, 4, 3, padding=1), torch.randn(4, 3, 5)),
        (nn.Conv3d(2, 3, 2), torch.randn(4, 2, 3, 3, 3)),
        (nn.InstanceNorm1d(6, affine=True), torch.randn(4, 6, 5)),
    ],
    ids=["conv2d", "groupnorm", "rmsnorm", "transposed", "conv3d", "instancenorm"],
)
def test_fallback_equals_autograd_one_example_at_a_time(module, x):
    leaf = FallbackLeaf(module)
    g = torch.randn_like(module(x))
    example_gradients = []
    for i in range(len(x)):
        out = module(x[i : i + 1])
        example_gradients.append(torch.autograd.grad((out * g[i : i + 1]).sum(), list(module.parameters())))
    oracle = {n: torch.stack([w[k] for w in example_gradients]).double() for k, n in enumerate(leaf.names)}
    hold(leaf, Use(x, g), lambda *_: oracle)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_non_finite_example_adds_nothing(kind):
    leaf, use, oracle = MAKERS[kind]((4, 5))
    use.g[1, 0, 0] = float("nan")
    use.g[2] = float("inf")
    into = fresh(leaf)
    norms = leaf.clip_into(use, Factor("abadi", 0.5, 0.0, abadi.factor), into)
    if kind == "embedding":  # the padding id hides whatever is in its row
        use.x[1, 0], use.x[2] = 0, torch.tensor([0, 1, 0, 1, 0])
        into = sums(leaf)
        norms = leaf.clip_into(use, Factor("abadi", 0.5, 0.0, abadi.factor), into)
    assert torch.isfinite(norms).tolist() == [True, False, False, True]
    good = Use(use.x[[0, 3]], use.g[[0, 3]])
    expected_gradients = oracle(leaf, good)
    scale = abadi.factor(norms_of({n: g for n, g in expected_gradients.items() if n in leaf.names}), 0.5, 0.0)
    for name in leaf.names:
        assert relative(into[name], torch.einsum("b,b...->...", scale, expected_gradients[name])) < 1e-5


@pytest.mark.parametrize("kind", MAKERS)
def test_incoming_tensors_are_left_as_they_were(kind):
    leaf, use, _ = MAKERS[kind]((4, 5))
    x, g = use.x.clone(), use.g.clone()
    into = sums(leaf)
    leaf.sq_norms(use)
    leaf.add_weighted(use, torch.rand(4), into)
    leaf.clip_into(use, Factor("abadi", 0.1, 0.0, abadi.factor), into)
    assert torch.equal(use.x, x)
    assert torch.equal(use.g, g)


def test_embedding_options_that_mix_examples_are_refused():
    with pytest.raises(errors.DpbenchError, match="max_norm"):
        EmbeddingLeaf(nn.Embedding(5, 3, max_norm=1.0))


@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_finite_leaves_a_fresh_sum_at_zero(kind):
    leaf, use, _ = MAKERS[kind]((3, 5))
    use.g[:] = float("nan")
    if kind == "embedding":
        use.x[:] = 0
    into = fresh(leaf)
    leaf.clip_into(use, Factor("abadi", 0.5, 0.0, abadi.factor), into)
    assert all(not value.any() for value in into.values())


def test_embedding_norms_in_pieces_of_the_batch(monkeypatch):
    from dpbench.kernels.embedding import cpu as embedding_cpu

    for elements in (1, 100):
        monkeypatch.setattr(embedding_cpu, "_CHUNK", elements)
        for shape in SHAPES:
            hold(*embedding(shape))


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"), [(2, 8, 8), (16, 300, 500), (48, 33, 7), (128, 384, 999), (200, 64, 64)]
)
@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3])
def test_a_gram_norm_says_no_less_where_tokens_cancel(tokens, inputs, outputs, noise):
    torch.manual_seed(tokens)
    half_x, half_g = torch.randn(4, tokens // 2, inputs), torch.randn(4, tokens // 2, outputs)
    x = torch.cat([half_x, half_x + noise * torch.randn_like(half_x)], 1)
    g = torch.cat([half_g, -half_g], 1)
    sq_norms = linear_cpu.gram_sq_norms(x, g).double()
    true = norms_of({"weight": of_linear(x, g)[0]}).square()
    terms = (x.double().square().sum(2) * g.double().square().sum(2)).sum(1)
    assert (sq_norms >= true * (1 - 1e-5)).all()
    assert (sq_norms <= true + 1e-5 * terms).all()  # and not much more


@pytest.mark.parametrize("function", ["auto_v", "auto_s", "abadi"])
@pytest.mark.parametrize(
    "leaf_class",
    [LinearLeaf, Conv1DLeaf, linear_native.NativeLinearLeaf, linear_native.NativeConv1DLeaf],
    ids=lambda c: c.__name__,
)
def test_a_single_pass_holds_its_bound_where_tokens_cancel(leaf_class, function):
    """Tokens in pairs that cancel to one part in 10^5: the norm is taken of the very numbers that are added, so whatever rounding
    did to them, what is added is no longer than the bound."""
    torch.manual_seed(0)
    module = Conv1D(48, 32) if issubclass(leaf_class, Conv1DLeaf) else nn.Linear(32, 48)
    if "native" in leaf_class.__module__ and (why := leaf_class.refuses(module)):
        pytest.skip(why)
    leaf = leaf_class(module)
    half_x, half_g = torch.randn(1, 128, 32), torch.randn(1, 128, 48)
    x = torch.cat([half_x, half_x * (1 + 1e-5 * torch.randn_like(half_x))], 1)
    g = torch.cat([half_g, -half_g], 1)
    assert not linear_cpu.gram_is_cheaper(256, 32, 48)
    into = sums(leaf)
    bound = 1e-6
    leaf.clip_into(Use(x, g), Factor(function, bound, 0.01, FUNCTIONS[function].factor), into)
    added = float(torch.stack([value.double().square().sum() for value in into.values()]).sum().sqrt())
    assert 0 < added <= bound * (1 + 1e-5)

"""The linear layer's Triton kernels against the fp64 oracle, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from guarded import SENTINEL, amid, guards_hold, with_fault
from kernel_oracles import FUNCTIONS, norms_of, oracle, relative
from torch import nn
from transformers.pytorch_utils import Conv1D

from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.linear import onchip, plan
from dpbench.kernels.linear import triton as ours
from dpbench.kernels.linear.triton import Conv1DTritonLeaf, LinearTritonLeaf
from dpbench.kernels.sheet import H100

SMALL = plan.Tile(16, 32, 32, 4, 2, 0.5)  # so that few elements already make several tiles
SMALL_GRAM = plan.Tile(16, 16, 32, 4, 2, 0.5)
WAYS = ("single", "gram", "direct")
# (B, T, I, O): odd sizes on each side of a tile's edge, and 1 wherever it can be
SIZES = [(1, 1, 1, 1), (3, 1, 17, 3), (2, 17, 33, 17), (2, 33, 3, 33), (2, 3, 65, 1)]
# fp32 accumulates in another order than the oracle; half precision rounds the inputs of the weighted product to 2^-9 or 2^-11
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def take(monkeypatch, way, small=True):
    """Every call goes `way`."""

    def tiles_of(*shape):
        dtype = shape[-1]
        product = SMALL if small else plan.product_tiles(dtype)[0]
        single = SMALL if small else plan.single_tiles(dtype)[0]
        return product, SMALL_GRAM if small else plan.gram_tiles(dtype)[0], single

    def choose(sheet, *shape):
        product, gram, single = tiles_of(*shape)
        if way == "single":
            return plan.Plan("single", None, single, 0.0)
        return plan.Plan(way, gram if way == "gram" else product, product, 0.0)

    monkeypatch.setattr(plan, "choose", choose)
    monkeypatch.setattr(plan, "sum_tile", lambda sheet, *shape: tiles_of(*shape)[0])
    norms = "gram" if way == "gram" else "direct"
    monkeypatch.setattr(plan, "norm_way", lambda sheet, *shape: (norms, tiles_of(*shape)[norms == "gram"]))


def case(size, dtype=torch.float32, bias=True, kind="linear"):
    torch.manual_seed(sum(size))
    batch, tokens, inputs, outputs = size
    if kind == "linear":
        leaf = LinearTritonLeaf(nn.Linear(inputs, outputs, bias=bias).to(dtype))
    else:
        leaf = Conv1DTritonLeaf(Conv1D(outputs, inputs).to(dtype))
    return leaf, Use(torch.randn(batch, tokens, inputs).to(dtype), torch.randn(batch, tokens, outputs).to(dtype))


def factor(name, bound, known=True):
    return Factor(name if known else "of_the_user", bound, 0.01, FUNCTIONS[name].factor)


def sums(leaf, fresh):
    """Unwritten, full of NaN; or holding something to add to."""
    if fresh:
        tensors = {n: amid(torch.full(p.shape, float("nan")), SENTINEL)[0] for n, p in leaf.parameters.items()}
        return Sums(tensors, tensors), {n: torch.zeros_like(t) for n, t in tensors.items()}
    tensors = {n: amid(torch.randn(p.shape), SENTINEL)[0] for n, p in leaf.parameters.items()}
    return Sums(tensors), {n: t.clone() for n, t in tensors.items()}


def check(leaf, use, tolerance, functions=("abadi",)):
    """Norms, weighted sum and clipped sum; fresh sums and others; factors formed on chip and between two kernels."""
    gradients = {n: v for n, v in oracle(leaf, use).items() if n in leaf.names}
    expected_norms = norms_of(gradients)
    assert relative(leaf.sq_norms(use).sqrt(), expected_norms) < 1e-5, "norms"
    bound = float(expected_norms.median()) or 0.1

    def hold(into, before, scale, what):
        for name, gradient in gradients.items():
            terms = torch.einsum("b,b...->b...", scale.double(), gradient)
            # against the terms' length: a sum of few numbers may cancel
            length = float(terms.flatten(1).norm(dim=1).sum()) + float(before[name].norm()) + 1e-12
            error = float((into[name].double() - before[name].double() - terms.sum(0)).norm()) / length
            assert error < tolerance, (what, name, error)

    for fresh, known in ((True, True), (False, True), (False, False)):
        if not known:
            scale = torch.rand(len(use.g))
            into, before = sums(leaf, fresh)
            leaf.add_weighted(use, scale, into)
            hold(into, before, scale, "weighted")
        for function in functions:
            into, before = sums(leaf, fresh)
            norms = leaf.clip_into(use, factor(function, bound, known), into)
            assert relative(norms, expected_norms) < 1e-5, function
            assert not into.fresh
            hold(into, before, FUNCTIONS[function].factor(expected_norms, bound, 0.01), (function, known, fresh))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_parity_at_odd_sizes(way, size, monkeypatch, poisoned_empty):
    take(monkeypatch, way)
    check(*case(size), 1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_parity_of_the_tiles_that_run_on_a_device(way, dtype, monkeypatch, poisoned_empty):
    take(monkeypatch, way, small=False)
    check(*case((2, 37, 70, 65), dtype), TOLERANCE[dtype], FUNCTIONS if dtype == torch.float32 else ("auto_s",))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_scaled_gradient_is_rounded_towards_zero(dtype, monkeypatch):
    """So that no example exceeds its bound. Numbers that are all alike would all be rounded up, by up to half a unit; the first
    example has the largest factor, by which others are divided in float16, and adds nothing."""
    take(monkeypatch, "direct")
    leaf, _ = case((2, 1, 5, 3), dtype, bias=False)
    use = Use(torch.ones(2, 1, 5, dtype=dtype), torch.ones(2, 1, 3, dtype=dtype))
    use.x[0] = 0
    for scale in (0.1, 0.3, 0.37, 0.51, 0.7, 0.77, 0.9, 0.999):
        into, _ = sums(leaf, True)
        leaf.add_weighted(use, torch.tensor([1.0, scale]), into)
        share = float(into["weight"].double().norm()) / 15**0.5 / float(torch.tensor(scale))
        assert 1 - 2 * torch.finfo(dtype).eps < share <= 1


@pytest.mark.parametrize("way", ["gram", "direct"])
def test_an_input_is_measured_as_it_is_summed(way, monkeypatch):
    """A layer under autocast is called with fp32 and sums products of half precision. (In bfloat16 the interpreter truncates.)"""
    take(monkeypatch, way)
    leaf, use = case((2, 5, 17, 3), torch.float16)
    x = torch.randn(2, 5, 17)
    assert torch.equal(leaf.sq_norms(Use(x, use.g)), leaf.sq_norms(Use(x.half(), use.g)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["conv1d", "no bias"])
def test_parity_of_other_weights(way, kind, monkeypatch):
    take(monkeypatch, way)
    leaf, use = case((2, 17, 33, 18), bias=kind != "no bias", kind="conv1d" if kind == "conv1d" else "linear")
    check(leaf, use, 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_only_what_is_trained_is_written(way, monkeypatch):
    take(monkeypatch, way)
    for name in ("weight", "bias"):
        module = nn.Linear(5, 4)
        getattr(module, name).requires_grad_(False)
        leaf = LinearTritonLeaf(module)
        check(leaf, Use(torch.randn(3, 7, 5), torch.randn(3, 7, 4)), 1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_guard_cells_around_every_tensor(way, kind, monkeypatch):
    """Inputs lie amid NaN, which any read beside them would spread; sums amid sentinels, which no write may touch."""
    take(monkeypatch, way)
    leaf, use = case((3, 19, 21, 37), kind=kind)
    plain, _ = sums(leaf, True)
    expected_norms = leaf.clip_into(use, factor("abadi", 3.0), plain)
    x, _ = amid(use.x, float("nan"))
    g, _ = amid(use.g, float("nan"))
    views, wholes = {}, {}
    for name, parameter in leaf.parameters.items():
        views[name], wholes[name] = amid(torch.zeros_like(parameter), SENTINEL)
    norms = leaf.clip_into(Use(x, g), factor("abadi", 3.0), Sums(views, views))
    assert torch.equal(norms, expected_norms)
    for name in views:
        assert torch.equal(views[name], plain[name])
        assert guards_hold(views[name], wholes[name]), name


@pytest.mark.parametrize("way", WAYS)
def test_any_strides(way, monkeypatch):
    take(monkeypatch, way)
    leaf, use = case((2, 18, 21, 15))
    plain, _ = sums(leaf, True)
    norms = leaf.clip_into(use, factor("auto_s", 1.0), plain)
    layouts = {
        "tokens first": lambda v: v.transpose(0, 1).contiguous().transpose(0, 1),
        "features first": lambda v: v.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "every other": lambda v: torch.stack([v, torch.full_like(v, float("nan"))], -1).flatten(2)[..., ::2],
        "two dimensions of tokens": lambda v: v.view(2, 3, 6, -1),
    }
    for name, make in layouts.items():
        into, _ = sums(leaf, True)
        assert torch.equal(leaf.clip_into(Use(make(use.x), make(use.g)), factor("auto_s", 1.0), into), norms), name
        assert all(torch.equal(into[n], plain[n]) for n in into), name
    check(leaf, Use(use.x[:1].expand_as(use.x), use.g[:, :1].expand_as(use.g)), 1e-5)
    check(leaf, Use(use.x[:, 0], use.g[:, 0]), 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_mixed_dtypes_as_autocast_leaves_them(way, monkeypatch):
    take(monkeypatch, way)
    leaf, use = case((2, 17, 18, 19))
    half = Use(use.x.bfloat16().float(), use.g.bfloat16())
    check(leaf, half, 2e-2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_nothing_to_add(way, shape, monkeypatch):
    take(monkeypatch, way)
    leaf, _ = case((1, 1, 3, 4))
    use = Use(torch.randn(*shape, 3), torch.randn(*shape, 4))
    for fresh in (True, False):
        into, before = sums(leaf, fresh)
        norms = leaf.clip_into(use, factor("auto_s", 1.0), into)
        assert torch.equal(norms, torch.zeros(shape[0]))
        leaf.add_weighted(use, torch.ones(shape[0]), into)
        assert all(torch.equal(into[name], before[name]) for name in into)
    assert torch.equal(leaf.sq_norms(use), torch.zeros(shape[0]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("known", "bad"), [(True, float("nan")), (True, float("inf")), (False, float("nan"))])
def test_a_bad_example_adds_exactly_nothing(way, known, bad, monkeypatch):
    take(monkeypatch, way)
    leaf, use = case((4, 18, 17, 15))
    for tensor, where in ((use.g, (1, 3, 5)), (use.x, (3, 17, 0))):
        tensor[where] = bad
    for function in FUNCTIONS if way == "single" else ["abadi"]:
        into, _ = sums(leaf, True)
        norms = leaf.clip_into(use, factor(function, 2.0, known), into)
        assert torch.isfinite(norms).tolist() == [True, False, True, False]
        alone, _ = sums(leaf, True)
        leaf.clip_into(Use(use.x[::2], use.g[::2]), factor(function, 2.0, known), alone)
        for name in into:
            assert relative(into[name], alone[name]) < 1e-6, (function, name)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_finite_leaves_zeros(way, monkeypatch):
    take(monkeypatch, way)
    leaf, use = case((2, 18, 17, 33))
    use.g[:] = float("nan")
    into, _ = sums(leaf, True)
    leaf.clip_into(use, factor("abadi", 2.0), into)
    assert all(not value.any() for value in into.values())


def test_a_norm_of_zero_and_one_of_infinity():
    """Abadi leaves a zero gradient alone, AUTO-V has no direction for it, AUTO-S divides by gamma: all add 0."""
    leaf, use = case((3, 2, 3, 4))
    use.g[0] = 0
    use.g[1] = 3e20  # its square is beyond fp32, so its norm is not known
    for function in FUNCTIONS:
        into, _ = sums(leaf, True)
        norms = leaf.clip_into(use, factor(function, 1e-3), into)
        assert norms[0] == 0
        assert torch.isinf(norms[1])
        assert all(torch.isfinite(value).all() for value in into.values())


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bits_twice_and_inputs_left_alone(way, monkeypatch):
    take(monkeypatch, way)
    leaf, use = case((3, 33, 40, 17))
    x, g = use.x.clone(), use.g.clone()
    results = []
    for _ in range(2):
        into, _ = sums(leaf, True)
        results.append((leaf.clip_into(use, factor("auto_s", 1.0), into), into["weight"], into["bias"]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(use.x, x)
    assert torch.equal(use.g, g)


def test_fp16_sums_survive_small_factors():
    """Factors far below fp16's smallest normal number: the scaled gradient must not be flushed to zero on its way."""
    leaf, use = case((3, 17, 20, 21), torch.float16)
    into, _ = sums(leaf, True)
    leaf.add_weighted(use, torch.tensor([1e-7, 2e-7, 3e-7]), into)
    expected_sum = torch.einsum("b,boi->oi", torch.tensor([1e-7, 2e-7, 3e-7]).double(), oracle(leaf, use)["weight"])
    assert relative(into["weight"], expected_sum) < 2e-3


FAULTS = {
    "x is loaded without a mask": ("mask=inside & (i < inputs)[None, :], other=0.0)", "mask=inside, other=0.0)", "single"),
    "tokens past the end are loaded": ("inside = (t < tokens)[:, None]", "inside = (t < tokens + 99)[:, None]", "direct"),
    "the sum is stored without a mask": ("tl.store(into, tile, mask=mask)", "tl.store(into, tile)", "single"),
    "a bad example is multiplied by 0": ("tl.where(factor > 0, tile * factor, 0.0)", "tile * factor", "single"),
    "a bad example is read": ("tl.where(live, x_tile, 0.0)", "x_tile", "gram"),
    "half of the Gram matrix is forgotten": ("tl.where(row == column, total + rounding * diagonal, 2 * total)", "total", "gram"),
    "the bias is not in the norm": ("if HAS_BIAS:\n        inner += 1.0", "if False:\n        inner += 1.0", "gram"),
    "the bias is in the norm once a tile": ("tl.where(first, tl.sum(column * column, 0), 0.0)", "tl.sum(column)", "direct"),
    "what is there is not added to": ("if not FRESH:\n        tile +=", "if False:\n        tile +=", "gram"),
    "what is not yet written is added to": ("if not FRESH:\n        tile +=", "if True:\n        tile +=", "single"),
    "an example's norm is another's": ("parts + example * programs, programs", "parts, programs", "single"),
}  # fmt: skip


def every_check():
    leaf, use = case((2, 19, 37, 21))
    x, _ = amid(use.x, float("nan"))
    g, _ = amid(use.g, float("nan"))
    check(leaf, Use(x, g), 1e-5)
    views, wholes = {}, {}
    for name, parameter in leaf.parameters.items():
        views[name], wholes[name] = amid(torch.zeros_like(parameter), SENTINEL)
    use.g[1, 2, 3] = use.x[1, 2, 3] = float("nan")
    leaf.clip_into(use, factor("abadi", 3.0), Sums(views, views))
    assert all(guards_hold(views[name], wholes[name]) and torch.isfinite(views[name]).all() for name in views)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_fault_nothing_is_caught(way, monkeypatch):
    take(monkeypatch, way)
    every_check()


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, monkeypatch, tmp_path):
    old, new, way = FAULTS[fault]
    take(monkeypatch, way)
    monkeypatch.setattr(ours, "onchip", with_fault(onchip.__file__, (old, new), folder=tmp_path))
    with pytest.raises(AssertionError):
        every_check()


def test_the_ways_are_all_taken_by_the_chooser():
    """What the tests above force is what shapes of real models get on a real device."""
    ways = {plan.choose(H100, 8, tokens, width, width, "bfloat16").way for tokens in (16, 1024) for width in (768, 8192)}
    assert {"single", "gram"} <= ways


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3])
def test_a_gram_norm_says_no_less_where_tokens_cancel(noise, monkeypatch):
    take(monkeypatch, "gram")
    torch.manual_seed(0)
    half_x, half_g = torch.randn(3, 20, 65), torch.randn(3, 20, 33)
    x = torch.cat([half_x, half_x + noise * torch.randn_like(half_x)], 1)
    g = torch.cat([half_g, -half_g], 1)
    sq_norms = ours.linear_sq_norms(x, g, False).double()
    true = norms_of({"weight": torch.einsum("bto,bti->boi", g.double(), x.double())}).square()
    terms = (x.double().square().sum(2) * g.double().square().sum(2)).sum(1)
    assert (sq_norms >= true * (1 - 1e-5)).all()
    assert (sq_norms <= true + 1e-5 * terms).all()

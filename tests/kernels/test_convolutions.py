"""Convolutions in all their ways: a chunk at once, kept, norms first, Gram matrices. Every leaf's sums that wait for norms."""

from __future__ import annotations

import pytest
import torch
from kernel_oracles import MAKERS, conv, fresh, hold, norms_of, of_sum, relative, sums
from torch import nn

from dpbench.kernels.conv import cpu
from dpbench.kernels.leaf import Factor, Use
from dpbench.privacy.clipping import abadi
from dpbench.simulate.peak import PeakBytes

WAYS = ("at once", "gram")
OPTIONS = [
    {},
    {"kernel_size": 1, "padding": 0},
    {"kernel_size": 5, "padding": 4},  # channels x columns lie together from here on: 20 values
    {"stride": 2, "padding": 0},
    {"dilation": 2, "padding": 3},
    {"groups": 2, "bias": False},
    {"groups": 2, "padding": "same", "kernel_size": 4},
    {"padding": 2, "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "reflect", "stride": 3},
]


def go(way: str, patch: pytest.MonkeyPatch) -> None:
    """All norms one way, whatever they cost."""
    patch.setattr(cpu, "GRAM_BELOW", float("inf") if way == "gram" else 0.0)
    patch.setattr(cpu, "gram_is_shorter", lambda *_: way == "gram")


def channels_last(use: Use) -> Use:
    """The same numbers, channels last in memory; said with strides, as one channel is both."""
    return Use(*(torch.empty_like(v).movedim(1, -1).contiguous().movedim(-1, 1).copy_(v) for v in (use.x, use.g)))


def bytes_of_one(leaf: cpu.ConvLeaf, use: Use) -> int:
    """Of one example's patches and gradient."""
    positions, inputs, outputs = leaf._sizes(use)
    return 4 * (positions * leaf.module.groups + outputs) * inputs


def hold_later(leaf, use, oracle) -> None:
    """Measured first, added later: all of them, then all but one."""
    expected_gradients = {n: g for n, g in oracle(leaf, use).items() if n in leaf.names}
    squared, later = leaf.measured(use)
    assert relative(squared.sqrt(), norms_of(expected_gradients)) < 1e-5
    factors, finite = torch.rand(len(use.g)), torch.ones(len(use.g), dtype=torch.bool)
    for into in (sums(leaf), fresh(leaf)):
        later(factors, finite, into)
        for name, gradient in expected_gradients.items():
            assert of_sum(into[name], factors, gradient) < 1e-5, name
    finite[len(finite) // 2] = False
    into = fresh(leaf)
    leaf.measured(use)[1](factors, finite, into)
    for name, gradient in expected_gradients.items():
        assert of_sum(into[name], factors[finite], gradient[finite]) < 1e-5, name


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("shape", [(3, 9), (2, 7, 6), (2, 4, 5, 5)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_convolutions_of_every_kind(way, shape, options, monkeypatch, poisoned_empty):
    if len(shape) == 4 and options.get("padding_mode") == "reflect":
        pytest.skip("the kernel wraps further than these few positions")
    go(way, monkeypatch)
    leaf, use, oracle = conv(shape, **options)
    for layout_use in (use, channels_last(use)):
        hold(leaf, layout_use, oracle)
        hold_later(leaf, layout_use, oracle)


@pytest.mark.parametrize("module", [nn.Conv2d(1, 5, 3), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(24, 3, (1, 4), (2, 3), (0, 2))])
def test_depthwise_groups_and_kernels_that_are_not_square(module):
    use = Use(torch.randn(3, module.in_channels, 7, 8), torch.empty(0))
    use.g = torch.randn_like(module(use.x)).detach()
    for layout_use in (use, channels_last(use)):
        hold(cpu.ConvLeaf(module), layout_use, conv((1, 1))[2])


@pytest.mark.parametrize("batch", [1, 4, 5, 6])
@pytest.mark.parametrize("examples", [0.5, 1, 2, 2.9, 5], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_borders_of_chunks(way, examples, batch, monkeypatch, poisoned_empty):
    """Chunks of one example (also where it is larger than a chunk), of two, of all; the last one short or not."""
    go(way, monkeypatch)
    leaf, use, oracle = conv((batch, 5, 4))
    monkeypatch.setitem(cpu.CHUNK, "cpu", int(examples * bytes_of_one(leaf, use)))
    if way == "at once":
        assert len(list(leaf._parts(use))) == -(-batch // max(1, int(examples)))
    hold(leaf, use, oracle)
    hold_later(leaf, use, oracle)


def test_a_non_finite_example_alone_or_beside_others_in_a_chunk(monkeypatch):
    for examples in (1, 2, 5):
        leaf, use, oracle = conv((5, 5, 4))
        monkeypatch.setitem(cpu.CHUNK, "cpu", examples * bytes_of_one(leaf, use))
        use.g[1, 0, 0] = float("nan")
        use.x[4] = float("inf")
        good = Use(use.x[[0, 2, 3]], use.g[[0, 2, 3]])
        expected_gradients = oracle(leaf, good)
        scale = abadi.factor(norms_of(expected_gradients), 0.5, 0.0)
        squared, later = leaf.measured(use)
        assert torch.isfinite(squared).tolist() == [True, False, True, True, False]
        kept, clipped = fresh(leaf), fresh(leaf)
        later(abadi.factor(squared.nan_to_num(1).sqrt(), 0.5, 0.0), torch.isfinite(squared), kept)
        leaf.clip_into(use, Factor("abadi", 0.5, 0.0, abadi.factor), clipped)
        for name in leaf.names:
            assert of_sum(kept[name], scale, expected_gradients[name]) < 1e-5
            assert of_sum(clipped[name], scale, expected_gradients[name]) < 1e-5


def test_a_chunk_that_is_lost_is_caught(monkeypatch):
    """The planted fault: the short chunk at the end is left out."""
    leaf, use, oracle = conv((5, 5, 4))
    monkeypatch.setitem(cpu.CHUNK, "cpu", 2 * bytes_of_one(leaf, use))
    real_parts = cpu.ConvLeaf._parts
    monkeypatch.setattr(cpu.ConvLeaf, "_parts", lambda *args: list(real_parts(*args))[:2])
    with pytest.raises((AssertionError, RuntimeError)):
        hold(leaf, use, oracle)


@pytest.mark.parametrize("trained", ["weight", "bias"])
@pytest.mark.parametrize("way", WAYS)
def test_one_tensor_alone(way, trained, monkeypatch):
    go(way, monkeypatch)
    leaf, use, oracle = conv((4, 6, 5))
    hold(leaf.only(trained), use, oracle)
    hold_later(leaf.only(trained), use, oracle)


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_batch_adds_nothing(way, monkeypatch, poisoned_empty):
    go(way, monkeypatch)
    leaf, use, _ = conv((2, 5, 4))
    nothing = Use(use.x[:0], use.g[:0])
    assert leaf.sq_norms(nothing).shape == (0,)
    into = fresh(leaf)
    assert leaf.clip_into(nothing, Factor("abadi", 0.5, 0.0, abadi.factor), into).shape == (0,)
    assert not any(value.any() for value in into.values())
    squared, later = leaf.measured(nothing)
    into = fresh(leaf)
    later(squared, squared > 0, into)
    assert not any(value.any() for value in into.values())


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_measured_first_is_added_later(kind):
    for shape in ((4, 5), (1, 1), (3, 2, 4)):
        hold_later(*MAKERS[kind](shape))


def test_gradients_are_kept_where_they_are_few(monkeypatch):
    def kept(leaf, use) -> bool:
        return leaf.measured(use)[1].func != leaf.add_finite

    monkeypatch.setattr(cpu, "GRAM_BELOW", 0.0)
    monkeypatch.setattr(cpu, "gram_is_shorter", lambda *_: False)
    few, many = conv((4, 9, 9)), conv((4, 2, 2))  # 216 elements against 810 and 40
    assert kept(*few[:2])
    assert kept(*many[:2])
    monkeypatch.setattr(cpu, "KEPT", 0)
    assert kept(*few[:2])
    assert not kept(*many[:2])
    hold_later(*many)


@pytest.mark.parametrize("way", WAYS)
def test_memory_does_not_grow_with_the_batch(way, monkeypatch):
    """Beside what comes in, and g scaled: a chunk and what is made of it, and the [B] norms and factors."""
    go(way, monkeypatch)
    peaks = []
    for batch in (8, 64):
        leaf, use, _ = conv((batch, 12, 12))
        chunk = 2 * (bytes_of_one(leaf, use) + (8 * 144**2 if way == "gram" else 0))
        monkeypatch.setitem(cpu.CHUNK, "cpu", chunk)
        into = sums(leaf)
        with PeakBytes() as peak:
            peak.count([use.x, use.g, *into.values()])
            before = peak.live
            leaf.clip_into(use, Factor("abadi", 0.5, 0.0, abadi.factor), into)
        peaks.append(peak.peak - before)
    scaled = use.g.nbytes if way == "gram" else 0  # and the input, padded by one on each side
    assert peaks[1] < 2 * chunk + scaled + use.x.nbytes * (14 / 12) ** 2 * (way == "gram") + 64 * 4 * 16
    if way == "at once":
        assert peaks[1] - peaks[0] < 64 * 4 * 16

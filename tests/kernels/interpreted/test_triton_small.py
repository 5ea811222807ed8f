"""LayerNorm, RMSNorm and embedding by Triton kernels, held to what their torch kernels are held to."""

from __future__ import annotations

import pytest
import torch
from guarded import SENTINEL, amid, guards_hold, with_fault
from kernel_oracles import hold, norms_of, oracle, relative
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dpbench.kernels.embedding import onchip as embedding_onchip
from dpbench.kernels.embedding import triton as embedding_ours
from dpbench.kernels.embedding.triton import EmbeddingTritonLeaf
from dpbench.kernels.layernorm import onchip as norm_onchip
from dpbench.kernels.layernorm import triton as norm_ours
from dpbench.kernels.layernorm.triton import LayerNormTritonLeaf
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.rmsnorm.triton import RMSNormTritonLeaf
from dpbench.privacy.clipping import abadi

SHAPES = [(1, 1), (2, 65), (2, 1, 3)]


def layernorm(shape, dtype=torch.float32, width=11, **options):
    torch.manual_seed(sum(shape))
    leaf = LayerNormTritonLeaf(nn.LayerNorm(width, **options).to(dtype))
    return leaf, Use(torch.randn(*shape, width).to(dtype), torch.randn(*shape, width).to(dtype)), oracle


def rmsnorm(shape, dtype=torch.float32, kind=nn.RMSNorm):
    torch.manual_seed(sum(shape))
    leaf = RMSNormTritonLeaf(kind(11, eps=1e-3).to(dtype))
    return leaf, Use(torch.randn(*shape, 11).to(dtype), torch.randn(*shape, 11).to(dtype)), oracle


def llama(shape, dtype=torch.float32):
    return rmsnorm(shape, dtype, LlamaRMSNorm)


def embedding(shape, dtype=torch.float32, width=9, padding=2):
    torch.manual_seed(sum(shape))
    leaf = EmbeddingTritonLeaf(nn.Embedding(5, width, padding_idx=padding).to(dtype))
    return leaf, Use(torch.randint(0, 5, shape), torch.randn(*shape, width).to(dtype)), oracle


MAKERS = {"layernorm": layernorm, "rmsnorm": rmsnorm, "llama": llama, "embedding": embedding}


def factor(bound=0.5):
    return Factor("abadi", bound, 0.0, abadi.factor)


def fresh(leaf):
    tensors = {n: torch.full_like(p, float("nan"), dtype=torch.float32) for n, p in leaf.parameters.items()}
    return Sums(tensors, tensors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_parity(kind, shape, poisoned_empty):
    hold(*MAKERS[kind](shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_half_precision_on_the_same_rounded_inputs(kind, dtype):
    hold(*MAKERS[kind]((3, 6), dtype), tolerance=2e-2)


def test_wide_rows_and_many_tokens(monkeypatch):
    hold(*layernorm((2, 37), width=257))
    monkeypatch.setattr(norm_ours, "_SHORTEST", 50)  # so that a program has more tokens than a tile of rows
    hold(*layernorm((2, 70)))
    hold(*embedding((1, 67), width=300, padding=None))


def test_only_what_is_trained():
    for frozen in ("weight", "bias"):
        module = nn.LayerNorm(11)
        getattr(module, frozen).requires_grad_(False)
        _, use, oracle = layernorm((3, 5))
        hold(LayerNormTritonLeaf(module), use, oracle)
    hold(*layernorm((3, 5), bias=False))


@pytest.mark.parametrize("kind", MAKERS)
def test_guard_cells_and_strides(kind):
    leaf, use, _ = MAKERS[kind]((2, 35))
    plain = fresh(leaf)
    expected_norms = leaf.clip_into(use, factor(), plain)
    x = use.x if kind == "embedding" else amid(use.x, float("nan"))[0]
    g = amid(use.g, float("nan"))[0]
    views, wholes = {}, {}
    for name, parameter in leaf.parameters.items():
        views[name], wholes[name] = amid(torch.zeros_like(parameter), SENTINEL)
    norms = leaf.clip_into(Use(x, g), factor(), Sums(views, views))
    torch.testing.assert_close(norms, expected_norms, rtol=1e-6, atol=0)
    for name in views:
        torch.testing.assert_close(views[name], plain[name], rtol=1e-5, atol=1e-6)
        assert guards_hold(views[name], wholes[name]), name


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bad_example_adds_exactly_nothing(kind):
    leaf, use, oracle = MAKERS[kind]((4, 5))
    use.g[1, 0, 0] = float("nan")
    use.g[2] = float("inf")
    if kind == "embedding":  # the padding id hides whatever is in its row
        use.x[1, 0], use.x[2] = 0, torch.tensor([0, 1, 0, 1, 0])
    good = Use(use.x[[0, 3]], use.g[[0, 3]])
    expected_gradients = oracle(leaf, good)
    scale = abadi.factor(norms_of(expected_gradients), 0.5, 0.0)
    for way in ("clip", "finite"):
        into = fresh(leaf)
        if way == "clip":
            norms = leaf.clip_into(use, factor(), into)
            assert torch.isfinite(norms).tolist() == [True, False, False, True]
        else:
            factors = torch.zeros(4)
            factors[[0, 3]] = scale.float()
            leaf.add_finite(use, factors, torch.tensor([True, False, False, True]), into)
        for name in leaf.names:
            assert relative(into[name], torch.einsum("b,b...->...", scale, expected_gradients[name])) < 1e-5


@pytest.mark.parametrize("kind", MAKERS)
def test_an_empty_batch(kind):
    leaf, use, _ = MAKERS[kind]((2, 5))
    into = fresh(leaf)
    assert leaf.clip_into(Use(use.x[:0], use.g[:0]), factor(), into).shape == (0,)
    assert all(not value.any() for value in into.values())


def test_rows_too_wide_are_refused():
    assert "8193 elements" in LayerNormTritonLeaf.refuses(nn.LayerNorm(8193))
    assert LayerNormTritonLeaf.refuses(nn.LayerNorm(8192)) is None
    assert "float64" in LayerNormTritonLeaf.refuses(nn.LayerNorm(4).double())


def test_an_embedding_sum_has_the_same_bits_in_any_order():
    """FLASH-12: no atomics, so nothing depends on which program is first."""
    leaf, use, _ = embedding((4, 40))
    sums_by_order = []
    for _ in range(2):
        into = fresh(leaf)
        leaf.clip_into(use, factor(), into)
        sums_by_order.append(into["weight"])
    assert torch.equal(*sums_by_order)


FAULTS = {
    "repeated tokens are not added before the norm": (
        embedding, "tl.where(same, tile, 0.0)", "tl.where(same & (rows[:, None] == columns[None, :]), tile, 0.0)",
    ),
    "the padding id counts": (
        embedding, "& (row_ids != padding), (columns < tokens) & (column_ids != padding)", ", columns < tokens",
    ),
    "only the first tokens of an id are added": (embedding, "going = tl.min(same.to(tl.int32), 0)", "going = 0"),
    "a tile off the diagonal counts once": (embedding, "tl.where(row == column, total, 2 * total)", "total"),
    "a row's mean is over the padded row": (layernorm, "(tl.sum(x_tile, 1) / width)", "(tl.sum(x_tile, 1) / BLOCK_D)"),
    "the shift is added to the scale": (layernorm, "tl.store(into + SCALE * width, shift", "tl.store(into, shift"),
    "tokens past the end count": (layernorm, "end = tl.minimum(begin + chunk, tokens)", "end = begin + chunk"),
}  # fmt: skip


def amid_numbers(maker):
    """A case whose tensors lie amid other numbers, which a fault may read."""
    leaf, use, oracle = maker((2, 70))
    return leaf, Use(use.x if maker is embedding else amid(use.x, 3.0)[0], amid(use.g, 3.0)[0]), oracle


@pytest.mark.parametrize("maker", [embedding, layernorm])
def test_without_a_fault_nothing_is_caught(maker):
    hold(*amid_numbers(maker))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, monkeypatch, tmp_path):
    maker, old, new = FAULTS[fault]
    ours, onchip = (embedding_ours, embedding_onchip) if maker is embedding else (norm_ours, norm_onchip)
    monkeypatch.setattr(ours, "onchip", with_fault(onchip.__file__, (old, new), folder=tmp_path))
    with pytest.raises(AssertionError):
        hold(*amid_numbers(maker))

"""Kernels of every kind with small inputs, their fp64 oracle, and the comparison of the two."""

from __future__ import annotations

import torch
from gradients import per_example
from torch import nn
from transformers.pytorch_utils import Conv1D

from dpbench.kernels.conv.cpu import ConvLeaf
from dpbench.kernels.embedding.cpu import EmbeddingLeaf
from dpbench.kernels.groupnorm.cpu import GroupNormLeaf
from dpbench.kernels.layernorm.cpu import LayerNormLeaf
from dpbench.kernels.layernorm.native import NativeLayerNormLeaf
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.linear import native as linear_native
from dpbench.kernels.linear.cpu import Conv1DLeaf, LinearLeaf
from dpbench.kernels.rmsnorm.cpu import RMSNormLeaf
from dpbench.kernels.rmsnorm.native import NativeRMSNormLeaf
from dpbench.privacy.clipping import abadi, auto_s, auto_v

FUNCTIONS = {"abadi": abadi, "auto_v": auto_v, "auto_s": auto_s}


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12))


def of_sum(actual: torch.Tensor, factors: torch.Tensor, gradients: torch.Tensor) -> float:
    """Error of a weighted sum, relative to it."""
    return relative(actual, torch.einsum("b,b...->...", factors.double(), gradients))


def of_terms(actual: torch.Tensor, factors: torch.Tensor, gradients: torch.Tensor) -> float:
    """Error of a weighted sum, against the length of its terms: in one dimension they may cancel, even to exactly 0."""
    terms = factors.double()[:, None] * gradients.flatten(1)
    return float((actual.double().flatten() - terms.sum(0)).norm() / terms.norm(dim=1).sum().clamp(min=1e-12))


def sums(leaf):
    return Sums({n: torch.zeros_like(p, dtype=torch.float32) for n, p in leaf.parameters.items()})


def fresh(leaf):
    """Sums that nobody has written yet: full of NaN."""
    tensors = {n: torch.full_like(p, float("nan"), dtype=torch.float32) for n, p in leaf.parameters.items()}
    return Sums(tensors, tensors)


def oracle(leaf, use):
    """name -> [B, ...] fp64 per-example gradients."""
    return per_example(leaf.module, use.x, use.g)


def linear(shape, dtype=torch.float32, inputs=13, outputs=7, bias=True):
    torch.manual_seed(sum(shape))
    leaf = LinearLeaf(nn.Linear(inputs, outputs, bias=bias).to(dtype))
    return leaf, Use(torch.randn(*shape, inputs).to(dtype), torch.randn(*shape, outputs).to(dtype)), oracle


def conv1d(shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    leaf = Conv1DLeaf(Conv1D(7, 13).to(dtype))
    return leaf, Use(torch.randn(*shape, 13).to(dtype), torch.randn(*shape, 7).to(dtype)), oracle


def layernorm(shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    leaf = LayerNormLeaf(nn.LayerNorm(11).to(dtype))
    return leaf, Use(torch.randn(*shape, 11).to(dtype), torch.randn(*shape, 11).to(dtype)), oracle


def embedding(shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    leaf = EmbeddingLeaf(nn.Embedding(5, 9, padding_idx=2).to(dtype))
    return leaf, Use(torch.randint(0, 5, shape), torch.randn(*shape, 9).to(dtype)), oracle


def rmsnorm(shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    leaf = RMSNormLeaf(nn.RMSNorm(11, eps=1e-3).to(dtype))
    return leaf, Use(torch.randn(*shape, 11).to(dtype), torch.randn(*shape, 11).to(dtype)), oracle


def groupnorm(shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    batch, *positions = shape
    leaf = GroupNormLeaf(nn.GroupNorm(3, 12).to(dtype))
    return leaf, Use(torch.randn(batch, 12, *positions).to(dtype), torch.randn(batch, 12, *positions).to(dtype)), oracle


def conv(shape, dtype=torch.float32, **options):
    """[B, T] is an nn.Conv1d over T positions, [B, H, W] an nn.Conv2d, [B, D, H, W] an nn.Conv3d."""
    torch.manual_seed(sum(shape))
    batch, *positions = shape
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(positions)]
    module = kind(4, 6, **({"kernel_size": 3, "padding": 1} | options)).to(dtype)
    x = torch.randn(batch, 4, *positions).to(dtype)
    return ConvLeaf(module), Use(x, torch.randn_like(module(x)).detach()), oracle


MAKERS = {"linear": linear, "conv1d": conv1d, "layernorm": layernorm, "embedding": embedding}
MAKERS |= {"rmsnorm": rmsnorm, "groupnorm": groupnorm, "conv": conv}


def in_c(make, leaf_class):
    def make_in_c(*args, **options):
        leaf, use, oracle = make(*args, **options)
        return leaf_class(leaf.module), use, oracle

    return make_in_c


if linear_native.NativeLinearLeaf.refuses(nn.Linear(1, 1)) is None:
    MAKERS |= {
        "linear_in_c": in_c(linear, linear_native.NativeLinearLeaf),
        "conv1d_in_c": in_c(conv1d, linear_native.NativeConv1DLeaf),
        "layernorm_in_c": in_c(layernorm, NativeLayerNormLeaf),
        "rmsnorm_in_c": in_c(rmsnorm, NativeRMSNormLeaf),
    }
SHAPES = [(1, 1), (3, 1), (4, 5), (2, 37), (5, 3, 4)]


def norms_of(gradients):
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()


def hold(leaf, use, oracle, tolerance=1e-5, error=of_sum):
    """The three ways a leaf can be asked, against its oracle."""
    expected_gradients = {n: g for n, g in oracle(leaf, use).items() if n in leaf.names}
    norms = norms_of(expected_gradients)
    assert relative(leaf.sq_norms(use).sqrt(), norms) < tolerance
    factors = torch.rand(len(use.g))
    into = sums(leaf)
    leaf.add_weighted(use, factors, into)
    for name, gradient in expected_gradients.items():
        assert error(into[name], factors, gradient) < tolerance, name
    bound = max(float(norms.median()), 0.1)  # half the examples are above it
    for name, function in FUNCTIONS.items():
        scale = function.factor(norms, bound, 0.01)
        for into in (sums(leaf), fresh(leaf)):
            clipped_norms = leaf.clip_into(use, Factor(name, bound, 0.01, function.factor), into)
            assert relative(clipped_norms, norms) < tolerance, name
            for tensor, gradient in expected_gradients.items():
                assert error(into[tensor], scale, gradient) < tolerance, (name, tensor)

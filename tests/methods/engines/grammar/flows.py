"""How gradients flow, what mixes examples, and what a forward pass writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from grammar.base import VOCABULARY, WIDTH, Block, around, attend, linear, noise, part

# gradients that are stopped, recomputed or made by hand


@part("gradient flow")
def detached_in_the_middle(d):
    return Block(lambda m, x, _: torch.tanh(m.b(m.a(x).detach())) + x, a=linear(), b=linear())


@part("gradient flow")
def one_call_without_gradient(d):
    def call(m, x, _):
        with torch.no_grad():
            target = m.a(x * 2)
        return m.a(x) * target

    return Block(call, a=linear())


@part("gradient flow")
def straight_through(d):
    return Block(lambda m, x, _: (h := m.a(x)) + (h.round() - h).detach(), a=linear())


@part("gradient flow")
def call_on_detached_input(d):
    return Block(lambda m, x, _: x + m.a(x.detach()) + m.a(x), a=linear())


@part("gradient flow")
def no_loss_reaches_it(d):
    called = d.coin()

    def call(m, x, _):
        if called:
            m.b(x)
        return m.a(x)

    return Block(call, a=linear(), b=linear())


@part("gradient flow")
def checkpointed(d):
    return Block(lambda m, x, _: checkpoint(m.a, x, use_reentrant=False), a=nn.Sequential(linear(), nn.Tanh(), linear()))


@part("gradient flow")
def checkpointed_reentrant(d):
    def call(m, x, _):
        return checkpoint(m.a, x if x.requires_grad else x.detach().requires_grad_(), use_reentrant=True)

    return Block(call, a=nn.Sequential(linear(), nn.Tanh(), linear()))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -0.5 * g


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return g @ weight.T, x.flatten(0, -2).T @ g.flatten(0, -2)


@part("gradient flow")
def checkpointed_with_a_weight_used_outside(d):
    def inner(m, x):
        return torch.tanh(m.a(x)) @ m.a.weight.T

    return Block(lambda m, x, _: checkpoint(inner, m, x, use_reentrant=False), a=linear())


@part("gradient flow", covered=True)
def teacher(d):
    """A frozen copy beside the layer."""
    a = linear()
    b = linear().requires_grad_(False)
    b.load_state_dict(a.state_dict())
    return Block(lambda m, x, _: m.a(x) * torch.tanh(m.b(x)), a=a, b=b)


@part("gradient flow")
def vector_of_all_weights(d):
    def call(m, x, _):
        return m.a(x) * (1 + nn.utils.parameters_to_vector(m.a.parameters()).square().mean())

    return Block(call, a=linear())


@part("gradient flow")
def reversed_gradient(d):
    return Block(lambda m, x, _: m.b(_Reversed.apply(m.a(x))), a=linear(), b=linear())


@part("gradient flow")
def product_by_hand(d):
    return Block(lambda m, x, _: torch.tanh(_Product.apply(x, m.a.weight)), a=linear())


class _ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = noise(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight)


@part("gradient flow")
def leaf_with_a_product_by_hand(d):
    return around(_ByHand())


@part("gradient flow")
def gradient_inside_the_forward_pass(d):
    def call(m, x, _):
        with torch.enable_grad():
            h = x if x.requires_grad else x.detach().requires_grad_()
            energy = m.a(torch.tanh(h)).square().sum()
            (slope,) = torch.autograd.grad(energy, h, create_graph=True)
        return x - 0.1 * slope

    return Block(call, a=linear())


# what mixes examples: only one example at a time is right


@part("mixing", mixes=True)
def batch_norm_by_function(d):
    return Block(lambda m, x, _: F.batch_norm(m.a(x).mT, None, None, training=True).mT.contiguous() + x, a=linear())


@part("mixing", mixes=True)
def centred_over_the_batch(d):
    return Block(lambda m, x, _: m.a(x) - 0.5 * m.a(x).mean(0), a=linear())


@part("mixing", mixes=True)
def softmax_over_the_batch(d):
    return Block(lambda m, x, _: x + torch.softmax(m.a(x), 0), a=linear())


@part("mixing", mixes=True)
def attention_over_the_batch(d):
    return Block(lambda m, x, _: x + attend(*m.qkv(x.transpose(0, 1)).chunk(3, -1)).transpose(0, 1), qkv=linear(WIDTH, 3 * WIDTH))


@part("mixing", mixes=True)
def scaled_by_the_batch(d):
    return Block(lambda m, x, _: m.a(x / x.square().mean().sqrt()), a=linear())


@part("mixing", mixes=True)
def centred_without_gradient(d):
    return Block(lambda m, x, _: m.a(x - x.mean(0).detach()) + x, a=linear())


@part("mixing", mixes=True)
def longest_of_the_batch(d):
    """The mean over as many tokens as the longest example has: right alone, wrong together."""

    def call(m, x, e):
        longest = int(e["mask"].sum(1).max().clamp(min=1))
        return m.a(x) + x[:, :longest].mean(1, keepdim=True)

    return Block(call, a=linear())


@part("mixing", mixes=True)
def embedding_scaled_by_frequency(d):
    return Block(lambda m, x, e: x + m.a(e["ids"]), a=nn.Embedding(VOCABULARY, WIDTH, scale_grad_by_freq=True))


@part("mixing", mixes=True, training=True, writes=True)
def batch_norm_module(d):
    return Block(lambda m, x, _: m.a(m.b(x).mT).mT, a=nn.BatchNorm1d(WIDTH, track_running_stats=d.coin()), b=linear())


@part("mixing", training=False)
def frozen_batch_norm(d):
    a = nn.BatchNorm1d(WIDTH).requires_grad_(False)
    return Block(lambda m, x, _: m.a(m.b(x).mT).mT, a=a, b=linear())


# what a forward pass writes into the model


@part("writing", writes=True)
def running_mean(d):
    def call(m, x, _):
        with torch.no_grad():
            m.mean.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
        return m.a(x - m.mean)

    return Block(call, a=linear(), mean=torch.zeros(WIDTH))


@part("writing", writes=True)
def replaced_buffer(d):
    def call(m, x, _):
        m.last = x.detach().mean((0, 1))
        return m.a(x)

    return Block(call, a=linear(), last=torch.zeros(WIDTH))


@part("writing", writes=True, training=True)
def instance_norm(d):
    return Block(lambda m, x, _: m.a(m.b(x).mT).mT, a=nn.InstanceNorm1d(WIDTH, track_running_stats=True), b=linear())


@part("writing", writes=True)
def embedding_with_max_norm(d):
    a = nn.Embedding(VOCABULARY, WIDTH, max_norm=0.5)
    a.weight.requires_grad_(d.coin())
    return Block(lambda m, x, e: m.b(x + m.a(e["ids"])), a=a, b=linear())


@part("writing", writes=True)
def codebook(d):
    def call(m, x, _):
        nearest = torch.cdist(x.detach().flatten(0, 1), m.codes).argmin(-1)
        with torch.no_grad():
            m.codes[nearest] += 0.1 * (x.detach().flatten(0, 1) - m.codes[nearest])
        return m.a(x + (m.codes[nearest].view_as(x) - x).detach())

    return Block(call, a=linear(), codes=torch.randn(3, WIDTH))


@part("writing", writes=True)
def activation_norm(d):
    """Scale and shift are set from the first batch."""

    def call(m, x, _):
        if not m.ready:
            m.shift.data.copy_(-x.detach().mean((0, 1)))
            m.ready.fill_(True)
        return m.a((x + m.shift) * m.scale)

    return Block(call, a=linear(), shift=noise(WIDTH), scale=noise(WIDTH), ready=torch.tensor(False))


@part("writing", writes=True, training=True)
def spectral_norm_in_training(d):
    return around(nn.utils.parametrizations.spectral_norm(linear()))

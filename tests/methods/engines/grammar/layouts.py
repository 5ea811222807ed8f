"""Which dimension holds the examples, in which order, and which examples a layer sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grammar.base import VOCABULARY, WIDTH, Affine, Block, attend, linear, noise, part

# layouts: which dimension holds the examples, in which order


@part("layout")
def sequence_first(d):
    kind = d.rng.choice([linear, Affine])
    return Block(lambda m, x, _: torch.tanh(m.a(x.transpose(0, 1)).transpose(0, 1)), a=kind())


@part("layout")
def ids_sequence_first(d):
    return Block(lambda m, x, e: x + m.a(e["ids"].T).transpose(0, 1), a=nn.Embedding(VOCABULARY, WIDTH))


@part("layout")
def reshaped_and_not_transposed(d):
    """[T, B, W] by `reshape`: with T = B every row holds values of one example, but not of the one of its number."""

    def call(m, x, _):
        return torch.tanh(m.a(x.reshape(x.shape[1], x.shape[0], WIDTH)).reshape(x.shape)) + m.b(x)

    return Block(call, a=linear(), b=linear())


@part("layout")
def examples_sorted(d):
    """By length, as before packing, and put back."""

    def call(m, x, e):
        order = e["mask"].sum(1).argsort()
        return torch.tanh(m.a(x[order])[order.argsort()]) + m.b(x)

    return Block(call, a=linear(), b=linear())


@part("layout")
def batch_in_the_last_dimension(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x.permute(1, 2, 0)).permute(2, 0, 1)), a=_Column())


class _Column(nn.Module):
    """[T, W, B] -> the same, by a weight for each of W."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = noise(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@part("layout", covered=True)
def windows(d):
    def call(m, x, _):
        padded = F.pad(x, (0, 0, 1, 1))
        return torch.tanh(m.a(padded.unfold(1, 3, 1).flatten(2)))

    return Block(call, a=linear(3 * WIDTH, WIDTH))


@part("layout", covered=True)
def four_dimensions(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x[:, :, None] * x[:, None]).mean(2)), a=linear())


@part("layout")
def fourier(d):
    """A weight that is read as complex numbers."""

    def call(m, x, _):
        spectrum = torch.fft.rfft(x, dim=2, norm="ortho")
        return torch.fft.irfft(spectrum * torch.view_as_complex(m.weight), n=WIDTH, dim=2, norm="ortho")

    return Block(call, weight=noise(WIDTH // 2 + 1, 2))


@part("layout")
def rows_folded_into_the_batch(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x.flatten(0, 1))).unflatten(0, x.shape[:2]), a=linear())


@part("layout")
def examples_in_another_order(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x.flip(0)).flip(0)) + m.b(x), a=linear(), b=linear())


@part("layout")
def rolled_examples(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x.roll(1, 0)).roll(-1, 0)) + m.b(x), a=linear(), b=linear())


@part("layout")
def batch_in_chunks(d):
    size = d.rng.choice([1, 2])
    return Block(lambda m, x, _: torch.cat([m.a(piece) for piece in x.split(size)]), a=linear())


@part("layout")
def batch_repeated(d):
    return Block(lambda m, x, _: torch.tanh(sum(m.a(torch.cat([x, -x])).chunk(2))), a=linear())


@part("layout")
def convolution_over_rows(d):
    """[T, B, W] as images of one channel would be; the examples are the channels."""
    return Block(lambda m, x, _: torch.tanh(m.a(x.transpose(0, 1)[:, :, None])[:, :, 0].transpose(0, 1)), a=_PerRow())


class _PerRow(nn.Module):
    """[T, B, 1, W] with a weight that depends on neither."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = noise(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@part("layout")
def positions_without_batch(d):
    return Block(lambda m, x, _: x + m.a(torch.arange(x.shape[1])), a=nn.Embedding(d.tokens, WIDTH))


@part("layout")
def positions_expanded(d):
    return Block(lambda m, x, _: x + m.a(torch.arange(x.shape[1]).expand(x.shape[0], -1)), a=nn.Embedding(d.tokens, WIDTH))


@part("layout")
def relative_positions(d):
    def call(m, x, _):
        steps = torch.arange(x.shape[1])
        bias = m.a((steps[:, None] - steps).abs())[..., 0]
        return x + torch.softmax(x @ x.mT + bias, -1) @ m.v(x)

    return Block(call, a=nn.Embedding(d.tokens, 1), v=linear())


@part("layout")
def table_through_a_layer(d):
    return Block(lambda m, x, _: x + m.a(m.table), a=linear(), table=torch.randn(d.tokens, WIDTH))


@part("layout")
def expanded_token(d):
    def call(m, x, _):
        return m.a(torch.cat([m.token.expand(len(x), -1, -1), x], 1))[:, 1:] + m.token

    return Block(call, a=linear(), token=noise(1, 1, WIDTH))


@part("layout")
def prompt_before_attention(d):
    def call(m, x, _):
        h = torch.cat([m.prompt[None].expand(len(x), -1, -1), x], 1)
        return x + attend(m.q(x), h, h)

    return Block(call, q=linear(), prompt=noise(2, WIDTH))


@part("layout")
def learned_scale(d):
    return Block(lambda m, x, _: x * m.scale + m.shift, scale=noise(WIDTH), shift=noise(1, 1, WIDTH))


# routing


@part("routing")
def experts_by_example(d):
    def call(m, x, _):
        out, route = torch.zeros_like(x), x[:, 0, :2].argmax(-1)
        for number, expert in enumerate([m.a, m.b]):
            rows = (route == number).nonzero()[:, 0]
            out = out.index_add(0, rows, torch.tanh(expert(x[rows])))
        return x + out

    return Block(call, a=linear(), b=linear())


@part("routing")
def experts_by_token(d):
    def call(m, x, _):
        out, flat = torch.zeros_like(x).flatten(0, 1), x.flatten(0, 1)
        for number, expert in enumerate([m.a, m.b]):
            rows = flat[:, :2].argmax(-1) == number
            out[rows] = torch.tanh(expert(flat[rows]))
        return x + out.view_as(x)

    return Block(call, a=linear(), b=linear())


@part("routing")
def weights_mixed_by_example(d):
    """A kernel for each example, from experts' weights: dynamic convolution."""

    def call(m, x, _):
        share = torch.softmax(m.gate(x.mean(1)), -1)
        return torch.tanh(torch.einsum("btw,be,ewv->btv", x, share, m.experts))

    return Block(call, gate=linear(WIDTH, 2), experts=noise(2, WIDTH, WIDTH))


@part("routing")
def weights_made_by_a_network(d):
    return Block(lambda m, x, e: torch.tanh(torch.bmm(x, m.a(e["side"]).view(-1, WIDTH, WIDTH))), a=linear(WIDTH, WIDTH**2))


@part("routing", mixes=True)
def branch_on_the_whole_batch(d):
    return Block(lambda m, x, _: m.a(x) if x.sum() > 0 else m.b(x) * 2, a=linear(), b=linear())


@part("routing")
def only_some_examples_reach_a_layer(d):
    return Block(lambda m, x, _: torch.where((x[:, :1, :1] > 0), m.a(x), x), a=linear())

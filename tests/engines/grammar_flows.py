"""Parts of random models: how examples and gradients flow through them. As in `grammar_parts`."""

from __future__ import annotations

from typing import Any

import torch
from grammar_parts import VOCABULARY, WIDTH, Affine, Block, around, linear, noise, part
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# attention


@part("attention")
def multihead_attention(d):
    first, weights = d.coin(), d.coin()

    def call(m, x, _):
        y = x if first else x.transpose(0, 1)
        y = m.a(y, y, y, need_weights=weights)[0]
        return x + (y if first else y.transpose(0, 1))

    return Block(call, a=nn.MultiheadAttention(WIDTH, 2, batch_first=first))


@part("attention")
def only_one_part_of_multihead_attention(d):
    a = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    trained = d.rng.choice(["out_proj", "in_proj"])
    for name, parameter in a.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    return Block(lambda m, x, _: x + m.a(x, x, x)[0], a=a)


@part("attention")
def transformer_layer(d):
    first = d.coin()
    a = nn.TransformerEncoderLayer(WIDTH, 2, 6, dropout=0.0, batch_first=first, norm_first=d.coin())
    return Block(lambda m, x, _: m.a(x) if first else m.a(x.transpose(0, 1)).transpose(0, 1), a=a)


@part("attention")
def transformer_decoder(d):
    a = nn.TransformerDecoderLayer(WIDTH, 2, 6, dropout=0.0, batch_first=True)
    return Block(lambda m, x, e: m.a(x, m.b(e["side"])[:, None]), a=a, b=linear())


@part("attention", covered=True)
def scaled_dot_product(d):
    causal = d.coin()

    def call(m, x, _):
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, 2)).unbind(2)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal)
        return x + m.o(y.transpose(1, 2).flatten(2))

    return Block(call, qkv=linear(WIDTH, 3 * WIDTH), o=linear())


def attend(q: Tensor, k: Tensor, v: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(q @ k.mT / WIDTH**0.5, dim) @ v


@part("attention", covered=True)
def attention_by_hand(d):
    return Block(lambda m, x, _: x + m.o(attend(m.q(x), m.k(x), m.v(x))), q=linear(), k=linear(), v=linear(), o=linear())


@part("attention", covered=True)
def attention_from_one_layer(d):
    return Block(lambda m, x, _: x + attend(*m.qkv(x).chunk(3, -1)), qkv=linear(WIDTH, 3 * WIDTH))


@part("attention")
def attention_in_place(d):
    def call(m, x, e):
        q, k, v = m.qkv(x).chunk(3, -1)
        scores = (q @ k.mT).div_(2.0)
        scores.masked_fill_(e["mask"][:, None] == 0, -10.0)
        return x + torch.softmax(scores, -1) @ v

    return Block(call, qkv=linear(WIDTH, 3 * WIDTH))


# recurrence


@part("recurrent")
def recurrent_module(d):
    first, kind, both = d.coin(), d.rng.choice([nn.LSTM, nn.GRU, nn.RNN]), d.coin(0.3)

    def call(m, x, _):
        y = m.a(x if first else x.transpose(0, 1))[0]
        return y if first else y.transpose(0, 1)

    return Block(call, a=kind(WIDTH, WIDTH // 2 if both else WIDTH, batch_first=first, bidirectional=both))


@part("recurrent")
def last_state_of_a_recurrent_module(d):
    return Block(lambda m, x, _: x + m.a(x)[1].transpose(0, 1), a=nn.GRU(WIDTH, WIDTH, batch_first=True))


@part("recurrent")
def recurrent_cell(d):
    kind = d.rng.choice([nn.LSTMCell, nn.GRUCell, nn.RNNCell])

    def call(m, x, _):
        state, outputs = None, []
        for t in range(x.shape[1]):
            state = m.a(x[:, t], state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)

    return Block(call, a=kind(WIDTH, WIDTH))


@part("recurrent")
def recurrence_by_hand(d):
    def call(m, x, _):
        h, outputs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(m.a(x[:, t]) + m.b(h))
            outputs.append(h)
        return torch.stack(outputs, 1)

    return Block(call, a=linear(), b=linear(bias=False))


@part("recurrent")
def packed_sequence(d):
    def call(m, x, e):
        lengths = e["mask"].sum(1).long().clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y = nn.utils.rnn.pad_packed_sequence(m.a(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        return x + y

    return Block(call, a=nn.LSTM(WIDTH, WIDTH, batch_first=True))


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
    return Block(lambda m, x, _: F.batch_norm(m.a(x).mT, None, None, training=True).mT + x, a=linear())


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


# adapters


def adapted(config: Any, **members: nn.Module) -> nn.Module:
    """`members` with the adapters of a peft configuration, called one after another on the activations."""
    from peft import PeftType, get_peft_model, inject_adapter_in_model

    def call(m, x, e):
        for name in members:
            x = x + (m.emb(e["ids"]) if name == "emb" else torch.tanh(getattr(m, name)(x)))
        return x

    block = Block(call, **members)
    if config.peft_type == PeftType.VERA:
        return get_peft_model(block, config)
    inject_adapter_in_model(config, block)
    return block


@part("adapter")
def low_rank(d):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["a"], use_dora=d.coin(), lora_dropout=0.0, init_lora_weights=False)
    return adapted(config, a=linear())


@part("adapter")
def low_rank_embedding(d):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules=["a", "emb"], init_lora_weights=False)
    return adapted(config, a=linear(), emb=nn.Embedding(VOCABULARY, WIDTH))


@part("adapter")
def low_rank_adaptive(d):
    from peft import AdaLoraConfig

    return adapted(AdaLoraConfig(init_r=2, target_modules=["a"], total_step=10, init_lora_weights=False), a=linear())


@part("adapter")
def scaling_vectors(d):
    from peft import IA3Config

    config = IA3Config(target_modules=["a", "b"], feedforward_modules=["b"], init_ia3_weights=False)
    return adapted(config, a=linear(), b=linear())


@part("adapter")
def shared_random_projections(d):
    from peft import VeraConfig

    return adapted(VeraConfig(r=2, target_modules=["a", "b"], d_initial=0.5, init_weights=False), a=linear(), b=linear())

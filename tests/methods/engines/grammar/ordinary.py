"""Layers as they come: nothing here is strange but some layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from grammar.base import VOCABULARY, WIDTH, Block, around, attend, channels, linear, part

# ordinary layers


@part("plain", covered=True)
def linear_layer(d):
    return around(linear(bias=d.coin()))


@part("plain", covered=True)
def perceptron(d):
    return Block(lambda m, x, _: x + m.b(F.gelu(m.a(x))), a=linear(WIDTH, 6), b=linear(6, WIDTH))


@part("plain", covered=True)
def conv1d(d):
    return channels(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=d.rng.choice([1, 2])))


@part("plain", covered=True)
def conv2d(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x[:, None])).mean(1), a=nn.Conv2d(1, 2, 3, padding=1, bias=d.coin()))


@part("plain", covered=True)
def strided_convolution(d):
    a = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=2, dilation=2, padding_mode=d.rng.choice(["zeros", "replicate"]))
    return Block(lambda m, x, _: F.interpolate(torch.tanh(m.a(x.mT)), size=x.shape[1]).mT, a=a)


@part("plain", covered=True)
def pooled_convolution(d):
    return Block(lambda m, x, _: x + F.adaptive_max_pool1d(m.a(x.mT), 1).mT, a=nn.Conv1d(WIDTH, WIDTH, 1))


@part("plain", covered=True)
def layer_norm(d):
    return Block(lambda m, x, _: m.a(x), a=nn.LayerNorm(WIDTH))


@part("plain", covered=True)
def group_norm(d):
    return Block(lambda m, x, _: m.a(x.mT).mT, a=nn.GroupNorm(2, WIDTH))


@part("plain", covered=True)
def rms_norm(d):
    return Block(lambda m, x, _: m.a(x), a=nn.RMSNorm(WIDTH, eps=1e-5))


@part("plain", covered=True)
def transposed_convolution(d):
    return channels(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1))


@part("plain", covered=True)
def hugging_face_conv1d(d):
    from transformers.pytorch_utils import Conv1D

    return around(Conv1D(WIDTH, WIDTH))


@part("plain", covered=True)
def slopes(d):
    return Block(lambda m, x, _: m.a(x.mT).mT, a=nn.PReLU(WIDTH))


@part("plain", covered=True)
def embedding_of_ids(d):
    return Block(lambda m, x, e: x + m.a(e["ids"]), a=nn.Embedding(VOCABULARY, WIDTH, padding_idx=d.rng.choice([None, 0])))


@part("plain")
def embedding_bag(d):
    mode = d.rng.choice(["sum", "mean", "max"])
    return Block(lambda m, x, e: x + m.a(e["ids"])[:, None], a=nn.EmbeddingBag(VOCABULARY, WIDTH, mode=mode))


@part("plain")
def sparse_embedding(d):
    return Block(lambda m, x, e: x + m.a(e["ids"]), a=nn.Embedding(VOCABULARY, WIDTH, sparse=True))


@part("plain")
def bilinear(d):
    return Block(lambda m, x, e: torch.tanh(m.a(x, e["side"][:, None].expand_as(x))), a=nn.Bilinear(WIDTH, WIDTH, WIDTH))


@part("plain", covered=True)
def dropout_in_eval_mode(d):
    return Block(lambda m, x, _: m.drop(m.a(x)), a=linear(), drop=nn.Dropout(0.0 if d.training else 0.5))


@part("plain", covered=True)
def layer_of_one_vector(d):
    return Block(lambda m, x, e: x + m.a(e["side"])[:, None], a=linear())


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

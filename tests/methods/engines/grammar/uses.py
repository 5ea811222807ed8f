"""Where a weight is used: outside its call, in several places, before an operation in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grammar.base import VOCABULARY, WIDTH, Affine, Block, linear, noise, part

# weights used outside their layer's call


@part("functional")
def weight_by_operator(d):
    called = d.coin()
    return Block(lambda m, x, _: torch.tanh((m.a(x) if called else x) @ m.a.weight.T), a=linear())


@part("functional")
def weight_of_one_bias_of_another(d):
    return Block(lambda m, x, _: torch.tanh(m.b(F.linear(x, m.a.weight, m.b.bias))), a=linear(), b=linear())


@part("functional")
def weight_read_as_number(d):
    return Block(lambda m, x, _: m.a(x) * (1 + m.b.weight.square().mean()) + m.b(x), a=linear(), b=linear())


@part("functional")
def weight_in_a_closure(d):
    a = linear()
    apply = lambda x: torch.tanh(x @ a.weight + a.bias)  # noqa: E731
    both = d.coin()
    return Block(lambda m, x, _: apply(m.a(x)) if both else apply(x), a=a)


@part("functional")
def weight_as_an_argument(d):
    return Block(lambda m, x, _: m.f(x, m.a.weight[0]) + m.a(x), a=linear(), f=Affine())


@part("functional")
def weight_as_a_keyword(d):
    return Block(lambda m, x, _: m.f(x, table=m.a.bias), a=linear(), f=Affine())


@part("functional")
def weight_as_the_input(d):
    return Block(lambda m, x, _: x @ torch.tanh(m.f(m.a.weight)) + m.a(x), a=linear(), f=linear())


@part("functional")
def weight_normalised_on_the_fly(d):
    return Block(lambda m, x, _: torch.tanh(F.linear(x, F.normalize(m.a.weight, dim=1), m.a.bias)), a=linear())


@part("functional")
def weight_as_embedding(d):
    return Block(lambda m, x, e: x + F.embedding(e["ids"], m.a.weight), a=nn.Embedding(VOCABULARY, WIDTH))


@part("functional")
def weight_detached_beside_its_call(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x) + x @ m.a.weight.detach()), a=linear())


@part("functional")
def slices_of_a_weight(d):
    return Block(lambda m, x, _: torch.cat([x @ m.a.weight[:2].T, x @ m.a.weight[2:].T * 0.5], -1), a=linear())


@part("functional")
def another_method_of_the_layer(d):
    return Block(lambda m, x, _: torch.tanh(m.a.project(m.a(x))), a=Affine())


@part("functional")
def forward_called_by_hand(d):
    also = d.coin()
    return Block(lambda m, x, _: torch.tanh(m.a.forward(m.a(x) if also else x)), a=linear())


@part("functional")
def nested_functional_call(d):
    def call(m, x, _):
        return torch.tanh(torch.func.functional_call(m.a, {"weight": m.a.weight * 2}, (x,)))

    return Block(call, a=linear())


class _Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inner = noise(WIDTH, WIDTH), linear()

    def forward(self, x: Tensor, extra: dict[str, Any]) -> Tensor:
        return torch.tanh(self.inner(x) @ self.weight)


@part("functional")
def weight_of_a_parent(d):
    return _Parent()


@part("functional")
def penalty_in_the_activations(d):
    return Block(lambda m, x, _: m.a(x) + 0.1 * m.a.weight.square().sum(), a=linear())


# tied and shared


@part("shared", covered=True)
def one_tensor_in_two_layers(d):
    a, b = linear(), linear()
    b.weight = a.weight
    return Block(lambda m, x, _: m.b(torch.tanh(m.a(x))), a=a, b=b)


@part("shared", covered=True)
def one_module_under_two_names(d):
    a = linear()
    return Block(lambda m, x, _: m.b(torch.tanh(m.a(x))), a=a, b=a)


@part("shared", covered=True)
def called_several_times(d):
    times = d.rng.choice([2, 3])

    def call(m, x, _):
        for _i in range(times):
            x = torch.tanh(m.a(x))
        return x

    return Block(call, a=d.rng.choice([linear, Affine])())


@part("shared", covered=True)
def called_in_two_branches(d):
    return Block(lambda m, x, _: m.a(x) * torch.sigmoid(m.a(-x)), a=linear())


@part("shared")
def two_parameters_over_one_memory(d):
    a, b = linear(), linear()
    b.weight = nn.Parameter(a.weight.data)
    return Block(lambda m, x, _: m.b(torch.tanh(m.a(x))), a=a, b=b)


@part("shared")
def transposed_use(d):
    return Block(lambda m, x, _: F.linear(torch.tanh(m.a(x)), m.a.weight.T), a=linear(bias=d.coin()))


@part("shared")
def transposed_tensor_of_another_layer(d):
    a, b = linear(WIDTH, 3), linear(3, WIDTH)
    return Block(lambda m, x, _: F.linear(m.a(x), m.a.weight.T, m.b.bias) + m.b(x[..., :3]), a=a, b=b)


@part("shared", covered=True)
def layer_shares_with_embedding(d):
    a, b = nn.Embedding(WIDTH, WIDTH), linear()
    b.weight = a.weight
    return Block(lambda m, x, e: m.b(x + m.a(e["ids"] % WIDTH)), a=a, b=b)


@part("shared", covered=True)
def one_bias_for_two(d):
    a, b = linear(), nn.LayerNorm(WIDTH)
    b.bias = a.bias
    return Block(lambda m, x, _: m.a(m.b(x)), a=a, b=b)


@part("shared")
def weight_and_bias_are_one(d):
    a = nn.LayerNorm(WIDTH)
    a.bias = a.weight
    return Block(lambda m, x, _: m.a(x), a=a)


@part("shared", covered=True)
def shared_block(d):
    inner = nn.Sequential(linear(), nn.Tanh(), nn.LayerNorm(WIDTH))
    return Block(lambda m, x, _: m.b(m.a(x)), a=inner, b=nn.Sequential(inner, nn.Tanh()))


@part("shared")
def tied_where_one_is_never_called(d):
    a, b = linear(), linear()
    b.weight = a.weight
    return Block(lambda m, x, _: torch.tanh(m.a(x)) * m.b.bias, a=a, b=b)


# in-place operations


@part("in place")
def activation_in_place(d):
    how = d.rng.choice([torch.relu_, torch.tanh_, lambda h: F.leaky_relu_(h, 0.1), nn.ReLU(inplace=True)])
    return Block(lambda m, x, _: m.b(how(m.a(x))), a=linear(), b=linear())


@part("in place")
def scaled_in_place(d):
    return Block(lambda m, x, _: m.a(x).mul_(0.5).add_(0.1), a=linear())


@part("in place")
def masked_in_place(d):
    return Block(lambda m, x, e: m.a(x).masked_fill_(e["mask"][..., None] == 0, 0.3), a=linear())


@part("in place")
def slice_assigned(d):
    zero = d.coin()

    def call(m, x, e):
        h = m.a(x)
        h[:, 0] = 0.0 if zero else e["side"]
        return h

    return Block(call, a=linear())


@part("in place")
def residual_in_place(d):
    def call(m, x, _):
        h = m.a(x)
        h += x
        return torch.tanh(h)

    return Block(call, a=linear())


@part("in place")
def residual_into_the_input(d):
    def call(m, x, _):
        x = x.clone()
        y = torch.tanh(m.a(x * 1))
        x += y
        return x

    return Block(call, a=linear())


@part("in place")
def view_changed_in_place(d):
    def call(m, x, _):
        h = m.a(x)
        h[:, :1].mul_(2)
        h.transpose(1, 2).add_(0.1)
        return torch.tanh(h)

    return Block(call, a=linear())


@part("in place")
def output_overwritten_by_another(d):
    def call(m, x, _):
        h = m.a(x)
        h[..., :2] = m.b(x)[..., :2]
        return torch.tanh(h)

    return Block(call, a=linear(), b=linear())


@part("in place")
def input_changed_after_use(d):
    """Legal where the weight is frozen: its gradient is what needs the input."""

    def call(m, x, _):
        x = x.clone()
        y = m.a(x)
        x.mul_(2)
        return y + x

    a = linear()
    a.weight.requires_grad_(False)
    return Block(call, a=a)


@part("in place")
def assembled_in_a_buffer(d):
    def call(m, x, _):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            out[:, t] = torch.tanh(m.a(x[:, t]))
        return out

    return Block(call, a=linear())

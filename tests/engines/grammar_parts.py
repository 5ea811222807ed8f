"""Parts of random models, [B, T, W] -> [B, T, W]: how a layer's parameters are held, shared and used.

A part is called as `part(x, extra)`; `extra` holds the other inputs: mask [B, T], side [B, W], ids [B, T].
"""

from __future__ import annotations

import random
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

WIDTH, VOCABULARY = 4, 7


@dataclass
class Draw:
    """What a model is drawn with. tokens: T; batch: B; training: the mode the model will be in."""

    rng: random.Random
    tokens: int
    batch: int
    training: bool

    def coin(self, chance: float = 0.5) -> bool:
        return self.rng.random() < chance


@dataclass(frozen=True)
class Part:
    """One production. mixes: an example's output depends on other examples; writes: the forward pass leaves values of the private
    batch in the model; training: the mode it needs, None for either; covered: every engine of ours does it."""

    name: str
    kind: str
    build: Callable[[Draw], nn.Module]
    mixes: bool = False
    writes: bool = False
    training: bool | None = None
    covered: bool = False


PARTS: dict[str, Part] = {}


def part(kind: str, **flags: Any) -> Callable[[Callable[[Draw], nn.Module]], Callable[[Draw], nn.Module]]:
    """Register a function that builds a part."""

    def register(build: Callable[[Draw], nn.Module]) -> Callable[[Draw], nn.Module]:
        name = build.__name__.replace("_", " ").strip()
        assert name not in PARTS, name
        PARTS[name] = Part(name, kind, build, **flags)
        return build

    return register


class Block(nn.Module):
    """Its members, and a function of itself, the activations and the other inputs."""

    def __init__(self, call: Callable[[Any, Tensor, dict[str, Any]], Tensor], **members: Any) -> None:
        super().__init__()
        for name, value in members.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self._call = call

    def forward(self, x: Tensor, extra: dict[str, Any]) -> Tensor:
        return self._call(self, x, extra)


def linear(inputs: int = WIDTH, outputs: int = WIDTH, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def noise(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.5)


def around(module: nn.Module) -> Block:
    """tanh after one module."""
    return Block(lambda m, x, _: torch.tanh(m.a(x)), a=module)


def channels(module: nn.Module) -> Block:
    """tanh after one module that takes [B, channels, T]."""
    return Block(lambda m, x, _: torch.tanh(m.a(x.mT)).mT, a=module)


class Affine(nn.Module):
    """A leaf of its own making, with optional inputs that have no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = noise(WIDTH), noise(WIDTH)

    def forward(self, x: Tensor, table: Tensor | None = None, *, scale: float = 1.0, gate: Tensor | None = None) -> Tensor:
        y = x * self.weight * scale + self.bias
        y = y if table is None else y * (1 + table * self.weight)
        return y if gate is None else y * gate[:, None, None]

    def project(self, x: Tensor) -> Tensor:
        return x * self.weight


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


# parametrisations


def quietly(change: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Old forms of parametrisations warn that there are new ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return change(*args, **kwargs)


@part("parametrised")
def weight_norm(d):
    return around(parametrizations.weight_norm(linear()))


@part("parametrised")
def weight_norm_of_a_convolution(d):
    return channels(parametrizations.weight_norm(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), dim=d.rng.choice([0, 1])))


@part("parametrised")
def weight_norm_by_hooks(d):
    return around(quietly(nn.utils.weight_norm, linear()))


@part("parametrised", training=False)
def spectral_norm(d):
    return around(parametrizations.spectral_norm(linear()))


@part("parametrised", training=False)
def spectral_norm_by_hooks(d):
    return around(quietly(nn.utils.spectral_norm, linear()))


@part("parametrised")
def orthogonal(d):
    return around(parametrizations.orthogonal(linear(), orthogonal_map=d.rng.choice(["matrix_exp", "cayley"])))


class _Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = noise(WIDTH, 1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain


class _Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


@part("parametrised")
def custom_parametrisation(d):
    a = linear()
    parametrize.register_parametrization(a, "weight", d.rng.choice([_Gain, _Symmetric])())
    return around(a)


@part("parametrised")
def parametrised_bias(d):
    a = nn.LayerNorm(WIDTH)
    parametrize.register_parametrization(a, "bias", nn.Softplus())
    return around(a)


@part("parametrised")
def pruned(d):
    a = linear()
    prune.random_unstructured(a, "weight", amount=0.4)
    return around(a)


# containers of parameters


@part("container")
def parameter_list(d):
    return Block(lambda m, x, _: torch.tanh(x @ m.p[0] + m.p[1]), p=nn.ParameterList([noise(WIDTH, WIDTH), noise(WIDTH)]))


@part("container")
def parameter_dict(d):
    held = nn.ParameterDict({"up": noise(WIDTH, 3), "down": noise(3, WIDTH)})
    return Block(lambda m, x, _: m.a(x) + x @ m.p["up"] @ m.p["down"], a=linear(), p=held)


@part("container")
def parameters_beside_children(d):
    return Block(lambda m, x, _: m.a(x) * m.scale + m.shift, a=linear(), scale=noise(WIDTH), shift=noise(WIDTH))


@part("container")
def module_dict(d):
    return Block(lambda m, x, _: m.p["b"](torch.tanh(m.p["a"](x))), p=nn.ModuleDict({"a": linear(), "b": linear()}))


class _Hidden(nn.Module):
    """A trained-looking tensor in a plain list: not the model's, so nobody trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.hidden = linear(), [noise(WIDTH)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Hidden:
        self.hidden = [nn.Parameter(fn(value.data)) for value in self.hidden]
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor, extra: dict[str, Any]) -> Tensor:
        return torch.tanh(self.a(x) * self.hidden[0])


@part("container")
def weight_in_a_plain_list(d):
    return _Hidden()


@part("container")
def layers_in_a_plain_list(d):
    block = Block(lambda m, x, _: m.hidden[1](torch.tanh(m.hidden[0](x))), a=linear(), b=linear())
    block.hidden = [block.a, block.b]
    return block


# changed forwards, hooks, subclasses


@part("changed call")
def replaced_instance_forward(d):
    a = linear()
    a.forward = types.MethodType(lambda self, x: F.linear(x, self.weight * 2, self.bias) + x, a)
    return around(a)


@part("changed call")
def pre_hook_changes_the_input(d):
    a = linear()
    a.register_forward_pre_hook(lambda _m, args: (args[0] * 2 + 0.1,))
    return around(a)


@part("changed call")
def hook_changes_the_output(d):
    a = linear()
    how = d.rng.choice([lambda out: out * 2, lambda out: out.mul_(2), lambda out: torch.tanh(out).detach() + out])
    a.register_forward_hook(lambda _m, _args, out: how(out))
    return around(a)


@part("changed call")
def pre_hook_changes_the_weight(d):
    a = linear()
    a.register_parameter("raw", noise(WIDTH, WIDTH))
    del a.weight

    def set_weight(module, _args):
        module.weight = module.raw * 0.5

    a.register_forward_pre_hook(set_weight)
    return around(a)


@part("changed call")
def gradient_scaled_by_a_hook(d):
    def call(m, x, _):
        h = m.a(x)
        if h.requires_grad:
            h.register_hook(lambda g: g * 0.5)
        return torch.tanh(h)

    return Block(call, a=linear())


@part("changed call")
def backward_hook_of_a_module(d):
    a = linear()
    a.register_full_backward_hook(lambda _m, gradients, _out: tuple(None if g is None else g * 0.5 for g in gradients))
    return around(a)


class _Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.tanh(super().forward(x)))


class _WithGain(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.gain = noise(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


class _Shifted(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x


class _Same(nn.Linear):
    pass


@part("changed call", covered=True)
def subclass_of_a_layer(d):
    kind = d.rng.choice([_Twice, _Shifted, _Same, _WithGain])
    return around(kind() if kind is _WithGain else kind(WIDTH) if kind is _Shifted else kind(WIDTH, WIDTH))


@dataclass
class Output:
    """What some modules return."""

    hidden: Tensor
    more: dict[str, Tensor] = field(default_factory=dict)


class _Returns(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight, self.form = noise(WIDTH, WIDTH), form

    def forward(self, x: Tensor) -> Any:
        return self.form(torch.tanh(x @ self.weight))


@part("changed call")
def returns_a_tuple(d):
    return Block(lambda m, x, _: m.a(x)[0] + m.a(x)[1], a=_Returns(lambda h: (h, h * 2)))


@part("changed call")
def returns_a_dict(d):
    return Block(lambda m, x, _: m.a(x)["hidden"], a=_Returns(lambda h: {"hidden": h, "other": None}))


@part("changed call")
def returns_a_dataclass(d):
    return Block(lambda m, x, _: m.a(x).hidden, a=_Returns(lambda h: Output(h, {"x": h})))


@part("changed call")
def returns_its_input_too(d):
    return Block(lambda m, x, _: m.a(x).sum(0), a=_Returns(lambda h: torch.stack([h, h * 0.5])))


@part("changed call")
def keywords_only(d):
    return Block(lambda m, x, _: m.a(input=x), a=linear())


# several inputs


@part("inputs")
def second_input_with_batch(d):
    return Block(lambda m, x, e: m.a(x, gate=e["side"][:, 0]), a=Affine())


@part("inputs")
def table_without_batch(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x, m.table)), a=Affine(), table=torch.randn(d.tokens, WIDTH))


@part("inputs")
def table_that_is_trained(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x, m.b(m.table))), a=Affine(), b=linear(), table=torch.randn(d.tokens, WIDTH))


@part("inputs")
def nothing_and_numbers(d):
    return Block(lambda m, x, _: torch.tanh(m.a(x, None, scale=0.7)), a=Affine())


@part("inputs")
def second_input_is_a_trained_output(d):
    return Block(lambda m, x, e: m.a(x, gate=torch.tanh(m.b(e["side"]))[:, 0]), a=Affine(), b=linear())

"""How a layer holds its weights, and what its call has become."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from grammar.base import VOCABULARY, WIDTH, Affine, Block, around, channels, linear, noise, part

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

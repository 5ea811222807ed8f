"""What people do to a model after attaching."""

from __future__ import annotations

import random
from collections.abc import Callable

from torch import nn
from torch.nn import functional as F

from grammar.base import WIDTH, Block, linear


def _layers(model: nn.Module, trained: bool | None) -> list[nn.Linear]:
    """Ordinary linear layers of the model whose weight is trained, or is not."""
    plain = [m for m in model.modules() if type(m) is nn.Linear and isinstance(m._parameters.get("weight"), nn.Parameter)]
    return [m for m in plain if trained is None or m.weight.requires_grad is trained]


def _unfreeze(model: nn.Module, rng: random.Random) -> bool:
    frozen = [p for p in model.parameters() if not p.requires_grad]
    if frozen:
        rng.choice(frozen).requires_grad_(True)
    return bool(frozen)


def _freeze_one(model: nn.Module, rng: random.Random) -> bool:
    trained = [p for p in model.parameters() if p.requires_grad]
    rng.choice(trained).requires_grad_(len(trained) < 2)
    return len(trained) > 1


def _replace(model: nn.Module, rng: random.Random) -> bool:
    layers = _layers(model, True)
    if layers:
        layer = rng.choice(layers)
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    return bool(layers)


def _tie(model: nn.Module, rng: random.Random) -> bool:
    layers = _layers(model, True)
    pairs = [(a, b) for a in layers for b in layers if a.weight is not b.weight and a.weight.shape == b.weight.shape]
    if pairs:
        one, other = rng.choice(pairs)
        one.weight = other.weight
    return bool(pairs)


def _add_hook(model: nn.Module, rng: random.Random) -> bool:
    layers = _layers(model, None)
    if layers:
        rng.choice(layers).register_forward_hook(lambda _m, _args, out: out * 2)
    return bool(layers)


def _replace_forward(model: nn.Module, rng: random.Random) -> bool:
    layers = _layers(model, None)
    if layers:
        layer = rng.choice(layers)
        layer.forward = lambda input: F.linear(input, layer.weight * 0.5, layer.bias)
    return bool(layers)


def _add_layer(model: nn.Module, rng: random.Random) -> bool:
    model.added = linear().to(next(model.parameters()).dtype)
    return True


def _use_weight_elsewhere(model: nn.Module, rng: random.Random) -> bool:
    layers = [layer for layer in _layers(model, True) if layer.in_features == WIDTH]
    if layers:
        layer = rng.choice(layers)
        model.parts.append(Block(lambda m, x, _: x * (1 + layer.weight.mean(0))))
    return bool(layers)


def _change_mode(model: nn.Module, rng: random.Random) -> bool:
    """But not where masks would be drawn then: there is no one right sum."""
    if any(isinstance(module, nn.Dropout) and module.p for module in model.modules()):
        return False
    return bool(model.train(not model.training))


EVENTS: dict[str, Callable[[nn.Module, random.Random], bool]] = {
    "nothing": lambda model, rng: False,
    "a frozen tensor is trained": _unfreeze,
    "a trained tensor is frozen": _freeze_one,
    "a parameter is replaced": _replace,
    "two layers are tied": _tie,
    "a hook is added": _add_hook,
    "a forward is replaced": _replace_forward,
    "a layer is added": _add_layer,
    "a weight is used elsewhere": _use_weight_elsewhere,
    "the mode is changed": _change_mode,
}

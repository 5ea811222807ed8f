"""What parts of random models are made of. A part maps [B, T, W] -> [B, T, W].

A part is called as `part(x, extra)`; `extra` holds the other inputs: mask [B, T], side [B, W], ids [B, T].
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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


def attend(q: Tensor, k: Tensor, v: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(q @ k.mT / WIDTH**0.5, dim) @ v

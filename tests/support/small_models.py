"""Small models and batches in which clipping bites: half the examples over the bound, one exactly zero."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from dpbench import plugins
from dpbench.methods import engines
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

VOCABULARY, WIDTH, TOKENS = 17, 8, 5


class Block(nn.Module):
    """A residual branch over LayerNorm, Conv1D, Linear: FLASH-7 damaged exactly this."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), Conv1D(12, WIDTH), nn.Linear(12, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Language(nn.Module):
    """Embedding, residual block, head; `tied` shares head and embedding."""

    def __init__(self, tied: bool = False, middle: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.block = nn.Embedding(VOCABULARY, WIDTH), Block()
        self.middle = middle() if middle is not None else None  # made here: an argument would draw before the seed
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.block(self.embed(ids))
        if self.middle is not None:
            x = x + self.middle(x.mT).mT
        return self.head(x)


class Twice(nn.Module):
    """One module called twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed, self.same, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids):
        return self.head(torch.tanh(self.same(torch.tanh(self.same(self.embed(ids))))))


class Alias(Twice):
    """One module registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.same


MODELS = {
    "plain": Language,
    "tied": lambda: Language(tied=True),
    "conv": lambda: Language(middle=lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "groupnorm": lambda: Language(middle=lambda: nn.GroupNorm(2, WIDTH)),
    "rmsnorm": lambda: Language(middle=lambda: nn.RMSNorm(TOKENS)),
    "other": lambda: Language(middle=lambda: nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)),  # has no kernel of its own
    "twice": Twice,
    "alias": Alias,
}


def data(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """ids, targets and weights; the weights put gradients on both sides of the bound, the first one exactly at zero."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (batch, TOKENS), generator=generator)
    targets = torch.randint(0, VOCABULARY, (batch, TOKENS), generator=generator)
    weight = torch.linspace(0.0, 1.5, batch) if batch > 1 else torch.ones(batch)
    return {"ids": ids, "targets": targets, "weight": weight}


def losses(model, batch):
    """[B]."""
    per_token = cross_entropy(model(batch["ids"]).mT, batch["targets"], reduction="none")
    return per_token.mean(1) * batch["weight"].to(per_token.dtype)


def mechanism(
    scope="flat",
    function="abadi",
    bound=0.5,
    noise_multiplier=0.0,
    expected=4.0,
    tied="sum",
    seed=0,
    allocation="global",
    thresholds=None,
    adaptive=None,
    steps=10,
    **options,
) -> Mechanism:
    devices = 2 if "devices" in plugins.get("scope", scope).extra.get("needs", ()) else None
    clipping = Clipping(function, scope, bound, 0.01, allocation, tied, devices, thresholds, adaptive)
    return Mechanism(Sampling("poisson", 100, expected), steps, clipping, noise_multiplier, seed=seed, **options)


def plain(expected=4.0) -> Mechanism:
    return Mechanism(Sampling("poisson", 100, expected), 10)


def gradients(name, model, plan, batches, loss=losses, dtype=torch.float32, kernels="auto"):
    """Released gradients of one logical step, flattened to fp64, on a copy of `model`; and the handle."""
    model = copy.deepcopy(model).to(dtype).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    handle = engines.attach(name, model, optimizer, plan, kernels)
    for batch in batches:
        handle.backward(loss, batch)
    optimizer.step()
    gradient = torch.cat([p.grad.double().flatten() for p in trained])
    handle.detach()
    return gradient, handle


def relative(actual, expected) -> float:
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-12))

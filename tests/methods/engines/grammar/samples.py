"""What is drawn, and the model that it stands for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grammar.base import PARTS, VOCABULARY, WIDTH, Draw, Part, linear
from grammar.batches import CONTAINERS
from grammar.events import EVENTS
from grammar.losses import LOSSES

CLASSES = 3

Batch = Callable[[Sequence[int]], Any]


class Model(nn.Module):
    """Entry, parts, head. The first two alone are `features`."""

    def __init__(self, entry: nn.Module | None, parts: Sequence[nn.Module], head: nn.Module | None, form: str) -> None:
        super().__init__()
        self.entry, self.parts, self.head, self.form = entry, nn.ModuleList(parts), head, form

    def features(self, x: Tensor | None, extra: dict[str, Any]) -> Tensor:
        h = x if self.entry is None else self.entry(extra["ids"])
        if self.form == "wants gradients":
            h = h.detach().requires_grad_(torch.is_grad_enabled())
        if self.form == "changes its batch":
            h = h.sub_(0.3)
        for part in self.parts:
            h = part(h, extra)
        return h

    def forward(self, x: Tensor | None, mask: Tensor, side: Tensor, ids: Tensor, **_: Any) -> Tensor:
        h = self.features(x, {"mask": mask, "side": side, "ids": ids})
        if self.form == "functional tied head":
            return h @ self.entry.weight.T
        return h if self.head is None else self.head(h)


@dataclass
class Built:
    """A model at the mode and precision it is tried in; batch(indices) makes the batch of some of the examples anew."""

    model: nn.Module
    losses: Callable[[nn.Module, Any], Tensor]
    batch: Batch


@dataclass(frozen=True)
class Sample:
    """What was drawn, and how to make it. size: B; pieces: the examples of each physical batch."""

    seed: int
    parts: tuple[Part, ...]
    entry: str
    head: str
    loss: str
    container: str
    size: int
    tokens: int
    training: bool
    frozen: str
    odd: str
    event: str
    pieces: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        parts = " -> ".join(part.name for part in self.parts)
        mode = "train" if self.training else "eval"
        sizes = "+".join(str(len(piece)) for piece in self.pieces)
        odd = f", example 0 {self.odd}" if self.odd != "finite" else ""
        event = "" if self.event == "nothing" else f"; after a step {self.event}"
        return (
            f"seed {self.seed}: {self.entry} -> {parts} -> {self.head}; loss: {self.loss}; batch: {self.container}{odd}, "
            f"{sizes} of T={self.tokens}; frozen: {self.frozen}; {mode}{event}"
        )

    @property
    def productions(self) -> list[str]:
        """Everything by which results are counted."""
        return [p.name for p in self.parts] + [
            f"entry: {self.entry}",
            f"head: {self.head}",
            f"loss: {self.loss}",
            f"batch: {self.container}",
            f"frozen: {self.frozen}",
            f"odd: {self.odd}",
            f"event: {self.event}",
        ]

    @property
    def covered(self) -> bool:
        """Whether every engine of ours must do it: no reason to refuse."""
        return (
            all(part.covered for part in self.parts)
            and self.entry in ("floats", "embedding", "frozen embedding")
            and self.head in ("class head", "token head", "tied head", "regression", "first token")
            and self.loss == "plain"
            and self.container in ("dict", "tuple")
            and self.odd == "finite"
            and self.event == "nothing"
            and all(self.pieces)
        )

    @property
    def writes(self) -> bool:
        """Whether the forward pass leaves values of the private batch in the model, so that every method must refuse."""
        return any(part.writes for part in self.parts)

    def build(self, dtype: torch.dtype) -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self._model()
            fields = self._fields(model)
        model = model.to(dtype).train(self.training)
        fields = {name: v.to(dtype) if v.is_floating_point() else v for name, v in fields.items()}

        def batch(indices: Sequence[int]) -> Any:
            rows = torch.tensor(list(indices), dtype=torch.long)
            return CONTAINERS[self.container]({name: value[rows] for name, value in fields.items()})

        return Built(model, LOSSES[self.loss], batch)

    def change(self, model: nn.Module) -> bool:
        """Let happen to the model what happens after the first step; whether anything did."""
        return EVENTS[self.event](model, random.Random(f"{self.seed} event"))

    def _model(self) -> Model:
        rng = random.Random(f"{self.seed} model")
        d = Draw(rng, self.tokens, self.size, self.training)
        entry = nn.Embedding(VOCABULARY, WIDTH) if "embedding" in self.entry else None
        parts = [part.build(d) for part in self.parts]
        head = {
            "class head": lambda: linear(WIDTH, CLASSES),
            "first token": lambda: linear(WIDTH, CLASSES),
            "token head": lambda: linear(WIDTH, VOCABULARY),
            "tied head": lambda: linear(WIDTH, VOCABULARY, bias=False),
        }.get(self.head, lambda: None)()
        if self.head == "tied head":
            head.weight = entry.weight
        form = self.head if self.head == "functional tied head" else self.entry
        model = Model(entry, parts, head, form)
        model.kind_of_head = self.head
        self._freeze(model, rng)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("weight", "bias")) and parameter.dim() == 1:  # norms begin at 1 and 0: hide nothing there
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return model

    def _freeze(self, model: Model, rng: random.Random) -> None:
        before = [p for p in model.parameters() if p.requires_grad]
        units = [m for m in [model.entry, *model.parts, model.head] if m is not None and next(m.parameters(), None) is not None]
        if self.entry == "frozen embedding":
            model.entry.requires_grad_(False)
        if self.frozen == "a part":
            rng.choice(units).requires_grad_(False)
        elif self.frozen == "all but one part":
            kept = {id(p) for p in rng.choice(units).parameters()}
            for p in model.parameters():
                p.requires_grad_(p.requires_grad and id(p) in kept)
        elif self.frozen == "some tensors":
            for p in model.parameters():
                p.requires_grad_(p.requires_grad and rng.random() < 0.6)
        elif self.frozen == "matrices":
            for p in model.parameters():
                p.requires_grad_(p.requires_grad and p.dim() < 2)
        if not any(p.requires_grad for p in model.parameters()):
            for p in before:
                p.requires_grad_(True)

    def _fields(self, model: Model) -> dict[str, Tensor]:
        size, tokens = self.size, self.tokens
        x = torch.randn(size, tokens, WIDTH)
        mask = (torch.rand(size, tokens) < 0.8).float()
        mask[:, 0] = 1
        weight = torch.linspace(0.3, 2.0, size)[torch.randperm(size)]
        if self.odd == "has weight 0":
            weight[0] = 0.0
        elif self.odd == "has a NaN weight":
            weight[0] = float("nan")
        elif self.odd == "has an infinite input":
            x[0, 0, 0] = float("inf")
        return {
            "x": x,
            "y": torch.randint(0, CLASSES, (size,)),
            "weight": weight,
            "mask": mask,
            "side": torch.randn(size, WIDTH),
            "ids": torch.randint(0, VOCABULARY, (size, tokens)),
            "targets": torch.randint(0, VOCABULARY, (size, tokens)),
        }


ODD = ("has weight 0", "has a NaN weight", "has an infinite input")


def draw(seed: int, must: str | None = None, mild: bool = False) -> Sample:
    """The sample of a seed: 1 to 5 parts, of kinds as likely as each other.

    Args:
        must: a part that is among them; mild: only parts and surroundings that every engine of ours does.
    """
    rng = random.Random(f"{seed} {must} {mild}" if must or mild else str(seed))
    chosen = [_one_part(rng, mild) for _ in range(rng.choice([1, 1, 2, 2, 3, 4, 5] if must is None else [0, 1, 2]))]
    if must is not None:
        chosen.insert(rng.randrange(len(chosen) + 1), PARTS[must])
    modes = {part.training for part in chosen if part.training is not None}
    training = modes.pop() if modes else rng.random() < 0.7
    chosen = [part for part in chosen if part.training in (None, training)]
    entry = _weighted(
        rng,
        {
            "floats": 4,
            "embedding": 4,
            "frozen embedding": 1,
            "wants gradients": 0 if mild else 1,
            "changes its batch": 0 if mild else 0.3,
        },
    )
    heads = {"class head": 4, "token head": 3, "regression": 2, "first token": 1}
    if "embedding" in entry:
        heads |= {"tied head": 2, "functional tied head": 0 if mild else 1}
    head = _weighted(rng, heads)
    strange = [name for name in LOSSES if name != "plain"]
    loss = "plain" if mild or entry == "changes its batch" or rng.random() < 0.85 else rng.choice(strange)
    container = rng.choice(["dict", "tuple"]) if mild or rng.random() < 0.7 else rng.choice(list(CONTAINERS))
    size, tokens = rng.choice([1, 2, 3, 4, 4, 5, 6]), rng.choice([2, 3, 4, 5])
    if not mild and rng.random() < 0.25:
        tokens = max(2, size)
    odd = "finite" if mild or size == 1 or rng.random() < 0.85 else rng.choice(ODD)
    frozen = "nothing" if rng.random() < 0.6 else rng.choice(["a part", "all but one part", "some tensors", "matrices"])
    pieces = _pieces(rng, size, empty=not mild)
    event = "nothing" if mild or rng.random() < 0.85 else rng.choice(list(EVENTS))
    return Sample(seed, tuple(chosen), entry, head, loss, container, size, tokens, training, frozen, odd, event, pieces)


def _one_part(rng: random.Random, mild: bool) -> Part:
    kinds = ["plain", "shared", "attention", "changed call"] if mild else sorted({p.kind for p in PARTS.values()})
    while True:
        kind = rng.choice(kinds)
        if kind == "adapter" and rng.random() < 0.5:  # peft is slow
            continue
        possible = [p for p in PARTS.values() if p.kind == kind and (p.covered or not mild)]
        return rng.choice(possible)


def _weighted(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _pieces(rng: random.Random, size: int, empty: bool) -> tuple[tuple[int, ...], ...]:
    """The examples in one to three physical batches, sometimes one of none."""
    indices = list(range(size))
    if rng.random() < 0.6:
        pieces = [indices]
    else:
        cuts = sorted(rng.sample(range(1, size), min(size - 1, rng.choice([1, 2]))))
        pieces = [indices[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
        rng.shuffle(pieces)
    if empty and rng.random() < 0.05:
        pieces.insert(rng.randrange(len(pieces) + 1), [])
    return tuple(tuple(piece) for piece in pieces)

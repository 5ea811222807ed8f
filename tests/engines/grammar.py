"""Random small models: a seed -> a model, its batch, its losses, and a sentence that says what they are.

    sample = draw(17)                  # what was drawn; `str(sample)` says it in words
    built = sample.build(torch.float64)
    built.losses(built.model, built.batch([0, 1, 2]))        # [3]

`build` makes the same model with the same numbers every time, so that nothing has to be copied: a copy of a model would keep
closures over the first one's tensors.
"""

from __future__ import annotations

import dataclasses
import random
from collections import UserDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grammar_flows
import torch
from grammar_parts import PARTS, VOCABULARY, WIDTH, Block, Draw, Part, linear
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3
KINDS = sorted({part.kind for part in PARTS.values()})
assert grammar_flows.__name__  # imported for its parts

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


# batches: the same fields in whatever people hold them


class Named(NamedTuple):
    x: Tensor
    y: Tensor
    weight: Tensor
    mask: Tensor
    side: Tensor
    ids: Tensor
    targets: Tensor


@dataclass
class Data:
    x: Tensor
    y: Tensor
    weight: Tensor
    mask: Tensor
    side: Tensor
    ids: Tensor
    targets: Tensor


def _encoding(fields: dict[str, Tensor]) -> Any:
    from transformers import BatchEncoding

    return BatchEncoding(fields)


def _model_output(fields: dict[str, Tensor]) -> Any:
    from transformers.utils import ModelOutput

    return ModelOutput(fields)


CONTAINERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "dict": dict,
    "tuple": lambda fields: tuple(fields.values()),
    "list": lambda fields: list(fields.values()),
    "namedtuple": lambda fields: Named(**fields),
    "dataclass": lambda fields: Data(**fields),
    "dict with numbers and None": lambda fields: {"scale": 1.0, "nothing": None, **fields, "name": "words"},
    "nested": lambda fields: {"inputs": {k: fields[k] for k in ("x", "mask", "side", "ids")}, "rest": [fields[k] for k in _REST]},
    "UserDict": UserDict,
    "BatchEncoding": _encoding,
    "ModelOutput": _model_output,
}
_REST = ("y", "weight", "targets")


def fields_of(batch: Any) -> dict[str, Tensor]:
    """What `CONTAINERS` packed."""
    if isinstance(batch, dict | UserDict) and "inputs" in batch:
        return {**batch["inputs"], **dict(zip(_REST, batch["rest"], strict=True))}
    if isinstance(batch, dict | UserDict):
        return {name: batch[name] for name in Named._fields}
    if dataclasses.is_dataclass(batch):
        return {name: getattr(batch, name) for name in Named._fields}
    return dict(zip(Named._fields, batch, strict=True))


# losses


def _of_outputs(kind: str, out: Tensor, f: dict[str, Tensor]) -> Tensor:
    """[B]"""
    if kind in ("token head", "tied head", "functional tied head"):
        each = F.cross_entropy(out.mT, f["targets"], reduction="none")
        return (each * f["mask"]).sum(1) / f["mask"].sum(1)
    if kind == "class head":
        return F.cross_entropy(out.mean(1), f["y"], reduction="none")
    if kind == "first token":
        return F.cross_entropy(out[:, 0], f["y"], reduction="none")
    return (out.mean(1) - f["side"]).square().sum(1)


def _called(model: Any, f: dict[str, Tensor]) -> Tensor:
    return model(f["x"], mask=f["mask"], side=f["side"], ids=f["ids"])


def _plain(model: Any, batch: Any) -> Tensor:
    f = fields_of(batch)
    return _of_outputs(model.kind_of_head, _called(model, f), f) * f["weight"]


def _with_penalty(model: Any, batch: Any) -> Tensor:
    """Each example pays for the weights: read outside any call."""
    values = [p.square().sum() for p in model.parameters() if p.requires_grad]
    return _plain(model, batch) + 0.05 * torch.stack(values).sum()


def _parts_by_hand(model: Any, batch: Any) -> Tensor:
    """The model's modules called one after another, the model itself never."""
    f = fields_of(batch)
    h = model.features(f["x"], {name: f[name] for name in ("mask", "side", "ids")})
    if model.kind_of_head == "functional tied head":
        h = h @ model.entry.weight.T
    return _of_outputs(model.kind_of_head, h if model.head is None else model.head(h), f) * f["weight"]


def _called_twice(model: Any, batch: Any) -> Tensor:
    """Two views of each example."""
    f = fields_of(batch)
    other = {**f, "x": -f["x"], "ids": (f["ids"] + 1) % VOCABULARY}
    return _plain(model, batch) + 0.5 * _of_outputs(model.kind_of_head, _called(model, other), f) * f["weight"]


def _views_as_rows(model: Any, batch: Any) -> Tensor:
    """Two views of each example as 2 B rows of one call."""
    f = fields_of(batch)
    both = {name: torch.cat([value, value]) for name, value in f.items()}
    both["x"] = torch.cat([f["x"], -f["x"]])
    values = _of_outputs(model.kind_of_head, _called(model, both), both) * both["weight"]
    return values.view(2, -1).sum(0)


def _negatives(model: Any, batch: Any) -> Tensor:
    """Contrastive: the other examples are the negatives."""
    f = fields_of(batch)
    h = _called(model, f).mean(1)
    return F.cross_entropy(h @ h.T, torch.arange(len(h)), reduction="none") * f["weight"] + _plain(model, batch)


def _centred(model: Any, batch: Any) -> Tensor:
    values = _plain(model, batch)
    return values - 0.3 * values.mean()


def _same_for_all(model: Any, batch: Any) -> Tensor:
    """The mean, given to every example: not a loss of that example alone."""
    values = _plain(model, batch)
    return values.mean().expand(len(values))


def _in_another_order(model: Any, batch: Any) -> Tensor:
    """The losses of the examples, the last one first: value i is not example i's."""
    return _plain(model, batch).flip(0)


def _hardest(model: Any, batch: Any) -> Tensor:
    """Only examples above the batch's mean count, as in mining; alone, each counts."""
    values = _plain(model, batch)
    return values * (values >= values.mean()).detach()


def _over_their_mean(model: Any, batch: Any) -> Tensor:
    values = _plain(model, batch)
    return values / (values.detach().mean() + 1)


LOSSES = {
    "plain": _plain,
    "with a penalty on weights": _with_penalty,
    "parts called by hand": _parts_by_hand,
    "model called twice": _called_twice,
    "views as rows": _views_as_rows,
    "negatives in the batch": _negatives,
    "centred": _centred,
    "mean for all": _same_for_all,
    "in another order": _in_another_order,
    "hardest of the batch": _hardest,
    "over their mean": _over_their_mean,
}


# events: what people do to a model after attaching


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
        layer.forward = lambda x: F.linear(x, layer.weight * 0.5, layer.bias)
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
    "the mode is changed": lambda model, rng: bool(model.train(not model.training)),
}
REFUSED_EVENTS = ("a parameter is replaced", "two layers are tied")
"""What is stepped on is then no longer the model's: there is no right answer."""

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
    kinds = ["plain", "shared", "attention", "changed call"] if mild else KINDS
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

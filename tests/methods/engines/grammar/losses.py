"""Losses [B]: most are of each example alone, some only look so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from grammar.base import VOCABULARY
from grammar.batches import fields_of


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

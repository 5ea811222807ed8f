"""The oracle: one example at a time through plain autograd. Slow, obvious, and what every engine is held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpbench.clipping.numbers import representable
from dpbench.engines.base import Handle, Losses, batch_size, check_losses, select
from dpbench.engines.functional import Stand, uses
from dpbench.kernels.leaf import accumulation_dtype

PLUGIN = {
    "kind": "engine",
    "name": "loop",
    "version": 1,
    "summary": "one example at a time (the oracle)",
    "private": True,
    "scopes": ["flat", "per_layer", "per_tensor", "per_block", "per_device"],
    "adaptive": True,
}


class Engine(Handle):
    """Per-example gradients by B backward passes; any module without cross-example terms.

    Under flat clipping no layout is needed, so parameters outside leaf modules are protected too.
    """

    name = "loop"
    scopes = ("flat", "per_layer", "per_tensor", "per_block", "per_device")
    adapts = True
    needs_layers = False

    def _accumulate(self, losses: Losses, batch: Any) -> Tensor:
        found = [self._one(losses, select(batch, slice(i, i + 1))) for i in range(batch_size(batch))]
        return torch.cat(found) if found else torch.zeros(0)

    def _one(self, losses: Losses, example: Any) -> Tensor:
        owner = uses(self.model)
        own = {name: parameter.detach().requires_grad_() for name, parameter in owner.items()}
        value = check_losses(losses(Stand(self.model, own, apart=True), example))  # type: ignore[arg-type]
        gradients = torch.autograd.grad(value.sum(), list(own.values()), allow_unused=True)
        self._add(dict(zip(own, gradients, strict=True)), owner)
        return value.detach()

    def _add(self, gradients: dict[str, Tensor | None], owner: dict[str, nn.Parameter]) -> None:
        norms = []
        parts = self._parts(owner)
        clipping = self.mechanism.clipping
        assert clipping is not None
        for group, names in enumerate(parts):
            total: dict[int, Tensor] = {}
            for name in names:
                gradient = gradients[name]
                if gradient is not None:
                    key = id(owner[name])
                    total[key] = total[key] + gradient if key in total else gradient
            device = owner[names[0]].device
            squares = [g.double().square().sum() for g in total.values()]
            norm = torch.stack(squares).sum().sqrt() if total else torch.zeros((), dtype=torch.float64, device=device)
            norms.append(norm)
            if not torch.isfinite(norm):
                continue
            factor = self._function.factor(norm.reshape(1), self.bounds[group], clipping.gamma)[0]
            for name in dict.fromkeys(names):
                key = id(owner[name])
                if key in total:
                    gradient = total.pop(key)
                    wide = accumulation_dtype(gradient)  # a factor or product of half precision would be rounded upwards
                    self.sum_of(owner[name]).add_(gradient.to(wide) * representable(factor.to(wide)))
        self.count(torch.stack(norms)[None], torch.tensor(self.bounds, dtype=torch.float64, device=norms[0].device))

    def _parts(self, owner: dict[str, nn.Parameter]) -> list[list[str]]:
        """Names of the uses in each group."""
        if self.layout is None:
            return [list(owner)]
        parts: list[list[str]] = [[] for _ in self.bounds]
        for cluster in self.layout.clusters:
            for layer in cluster.layers:
                prefix = "" if layer.name == "(model)" else f"{layer.name}."
                parts[cluster.group] += [f"{prefix}{n}" for n in layer.parameters]
        return parts

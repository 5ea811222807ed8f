"""The oracle: one example at a time through plain autograd. Slow, obvious, and what every engine is held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpbench.engines.base import Handle, Losses, batch_size, check_losses, select

PLUGIN = {
    "kind": "engine",
    "name": "loop",
    "version": 1,
    "summary": "one example at a time (the oracle)",
    "private": True,
    "scopes": ["flat", "per_layer"],
}


class _Stand:
    """The model with each use of a tied tensor given its own parameter, so that uses have gradients apart."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        self._model, self._parameters = model, parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self._model, self._parameters, args, kwargs, tie_weights=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Engine(Handle):
    """Per-example gradients by B backward passes; any module without cross-example terms.

    Under flat clipping no layout is needed, so parameters outside leaf modules are protected too.
    """

    name = "loop"
    needs_layers = False

    def _accumulate(self, losses: Losses, batch: Any) -> Tensor:
        found = [self._one(losses, select(batch, slice(i, i + 1))) for i in range(batch_size(batch))]
        return torch.cat(found) if found else torch.zeros(0)

    def _one(self, losses: Losses, example: Any) -> Tensor:
        uses = self._uses()
        value = check_losses(losses(_Stand(self.model, {n: p for n, (p, _) in uses.items()}), example))  # type: ignore[arg-type]
        gradients = torch.autograd.grad(value.sum(), [p for p, _ in uses.values()], allow_unused=True)
        self._add(dict(zip(uses, gradients, strict=True)), {n: q for n, (_, q) in uses.items()})
        return value.detach()

    def _uses(self) -> dict[str, tuple[Tensor, nn.Parameter]]:
        """Name of each use -> (a detached copy to differentiate, the shared parameter)."""
        return {
            name: (parameter.detach().requires_grad_(), parameter)
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        }

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
            norm = torch.stack([g.double().square().sum() for g in total.values()]).sum().sqrt() if total else torch.zeros(())
            norms.append(norm.double())
            if not torch.isfinite(norm):
                continue
            factor = self._function.factor(norm.reshape(1), self.bounds[group], clipping.gamma)[0]
            for name in dict.fromkeys(names):
                key = id(owner[name])
                if key in total:
                    gradient = total.pop(key)
                    self.sum_of(owner[name]).add_(gradient * factor.to(gradient.dtype))
        self.count(torch.stack(norms)[None], torch.tensor(self.bounds, dtype=torch.float64))

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

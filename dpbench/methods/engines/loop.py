"""The oracle: one example at a time through plain autograd. It is slow and obvious, and every engine is compared with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpbench.kernels.leaf import accumulation_dtype
from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.batches import Batch, Losses, batch_size, select
from dpbench.methods.engines.functional import check_uses_seen, gradients_by_use, gradients_of_one, uses
from dpbench.methods.engines.probes import RandomStreams
from dpbench.methods.engines.rescue import group_members
from dpbench.privacy.clipping.numbers import representable

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
    """The engine `loop`: per-example gradients by B backward passes, for any module without cross-example terms.

    Under flat clipping no layout is needed, so parameters outside leaf modules are protected too.
    """

    needs_layers = False
    tracks_reach = True
    replaces = False  # whether gradients are formed with other tensors in place of the parameters

    def _look(self, losses: Losses, batch: Batch, changed: bool) -> None:
        if not (self.replaces or self.clipping.tied == "per_use") or not (changed or len(self._reached) < len(self.trainable)):
            return
        streams = RandomStreams(self.model)
        try:
            self._reached |= check_uses_seen(self.model, losses, select(batch, slice(1)), self.trainable, streams.rewind)
        finally:
            streams.rewind()

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        values = [self._one(losses, select(batch, slice(i, i + 1))) for i in range(batch_size(batch))]
        return torch.cat(values) if values else torch.zeros(0)

    def _one(self, losses: Losses, example: Batch) -> Tensor:
        if self.clipping.tied == "per_use":
            owner = uses(self.model)
            value, by_use = gradients_by_use(self.model, losses, example)
            self._reached |= {id(owner[name]) for name, gradient in by_use.items() if gradient is not None}
            groups = [[(owner[n], g) for n in names if (g := by_use[n]) is not None] for names in self._parts(owner)]
        else:
            value, gradients = gradients_of_one(self.model, losses, example, self.trainable.values())
            self._reached |= gradients.keys()
            members = group_members(self)
            groups = [[(p, gradients[id(p)]) for p in members[group] if id(p) in gradients] for group in sorted(members)]
        self._add(groups)
        return value

    def _add(self, groups: list[list[tuple[nn.Parameter, Tensor]]]) -> None:
        """Add one example's bounded gradients from the list of (parameter, gradient) of each group."""
        device = next(iter(self.trainable.values())).device
        norms = []
        for group, parts in enumerate(groups):
            squares = [g.double().square().sum() for _, g in parts]
            norm = torch.stack(squares).sum().sqrt() if parts else torch.zeros((), dtype=torch.float64, device=device)
            norms.append(norm)
            if not torch.isfinite(norm):
                continue
            factor = self._function.factor(norm.reshape(1), self.bounds[group], self.clipping.gamma)[0]
            for parameter, gradient in parts:
                wide = accumulation_dtype(gradient)  # a factor or product of half precision would be rounded upwards
                scale = factor.to(wide)
                if torch.isfinite(scale):
                    self.sum_of(parameter).add_(gradient.to(wide) * representable(scale))
                else:  # a gradient so small that its factor is beyond float32
                    self.sum_of(parameter).add_(gradient.double() * factor)
        self.count(torch.stack(norms)[None], torch.tensor(self.bounds, dtype=torch.float64, device=device))

    def _parts(self, owner: dict[str, nn.Parameter]) -> list[list[str]]:
        """Return the names of the uses in each group."""
        if self.layout is None:
            return [list(owner)]
        parts: list[list[str]] = [[] for _ in self.bounds]
        by_module: dict[str, list[str]] = {}
        for name in owner:
            by_module.setdefault(name.rpartition(".")[0] or "(model)", []).append(name)
        for cluster in self.layout.clusters:
            for layer in cluster.layers:
                ids = {id(p) for p in layer.parameters.values()}  # a tensor may have two names in one module
                parts[cluster.group] += [name for name in by_module[layer.name] if id(owner[name]) in ids]
        return parts

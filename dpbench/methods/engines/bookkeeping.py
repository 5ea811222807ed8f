"""One backward pass with weight gradients afterwards: output gradients are kept until all norms are known.

Book-keeping of Bu et al. (ICML 2023, "Differentially Private Optimization on Large Model at Small Cost"), section 3:
2 units of matrix work for the sum as in plain training, plus the norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dpbench.kernels.leaf import Later, Use, sq_norms, weighted_factors
from dpbench.methods.engines.capture import Pass
from dpbench.methods.engines.captured import Captured
from dpbench.methods.engines.layers import Cluster, Layer

PLUGIN = {
    "kind": "engine",
    "name": "bookkeeping",
    "version": 2,
    "summary": "one backward, sums after all norms",
    "private": True,
    "scopes": ["flat", "per_layer", "per_tensor", "per_block", "per_device"],
    "adaptive": True,
    "kernels": True,
    "parallel": ["replicas", "shards", "stages"],
}

Kept = tuple[int, Layer, Later]
"""A group, a layer, and a function that adds the layer's examples once their norms are known."""


class Engine(Captured):
    """The engine `bookkeeping`, for every scope.

    Its extra memory is the output gradients of all trained layers of one physical batch. Where a layer's per-example gradients
    are smaller than its input and output gradient, or small, they are kept in place of these.
    """

    def _prepare_clipping(self) -> None:
        super()._prepare_clipping()
        self._waiting: list[tuple[dict[int, Tensor], list[Kept], int | None]] = []  # with the pass' number of real examples

    def backward_of(
        self, open_pass: Pass, outputs: Tensor, gradients: Tensor | None = None, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        squared: dict[int, Tensor] = {}
        kept: list[Kept] = []

        def ready(cluster: Cluster, uses: list[tuple[Layer, Use]]) -> None:
            if len(uses) == 1:
                layer, use = uses[0]
                squares, later = layer.leaf.measured(use)
                kept.append((cluster.group, layer, later))
            else:
                squares = sq_norms([(layer.leaf, use) for layer, use in uses])
                kept.extend((cluster.group, layer, partial(layer.leaf.add_finite, use)) for layer, use in uses)
            squared[cluster.group] = squared[cluster.group] + squares if cluster.group in squared else squares

        input_gradients = open_pass.backward(outputs, ready, gradients, inputs)
        if self.exchange.norms_wait:
            self._waiting.append((squared, kept, self.real))
            return input_gradients
        with torch.no_grad():
            self._sum(squared, kept)
        return input_gradients

    def flush_deferred(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with torch.no_grad():
            norms = self.exchange.global_norms([squared for squared, _, _ in waiting])
            for squared, (_, kept, real) in zip(norms, waiting, strict=True):
                self.real = real
                self._sum(squared, kept)

    def _sum(self, squared: dict[int, Tensor], kept: list[Kept]) -> None:
        norms = {group: value.sqrt() for group, value in squared.items()}
        factors = {group: weighted_factors(value, self.factor(group)) for group, value in norms.items()}
        while kept:  # each is removed from the list, so that its memory is freed after use
            group, layer, later = kept.pop()
            later(*factors[group], self.sums_of(layer))
            self.exchange.finished(self, [layer])
        groups = sorted(norms)
        bounds = self.bounds_of(groups, norms[groups[0]].device)
        self.count(torch.stack([norms[k] for k in groups], 1), bounds, groups)

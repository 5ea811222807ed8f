"""Per-layer or per-tensor clipping in one backward pass: gradients are clipped and summed the moment they exist.

FlashDP (arXiv 2507.01154), algorithm 1: norm, factor and sum of one layer are formed while its output gradient exists, so
no per-example gradient is kept after its example and no activation after its layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpbench.kernels.leaf import Use, clip_one_by_one
from dpbench.methods.engines.capture import Pass
from dpbench.methods.engines.captured import Captured
from dpbench.methods.engines.layers import Cluster, Layer

PLUGIN = {
    "kind": "engine",
    "name": "fused",
    "version": 3,
    "summary": "per-layer, single pass inside backward (FlashDP)",
    "private": True,
    "scopes": ["per_layer", "per_tensor"],
    "adaptive": True,
    "kernels": True,
    "parallel": ["replicas", "shards", "stages"],
}


class Engine(Captured):
    """The engine `fused`: one backward pass. Its extra memory is one buffer of the size of a layer's weight."""

    def backward_of(
        self, open_pass: Pass, outputs: Tensor, gradients: Tensor | None = None, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        norms: dict[int, Tensor] = {}

        def ready(cluster: Cluster, uses: list[tuple[Layer, Use]]) -> None:
            norms[cluster.group] = self._clip(cluster, uses)
            self.exchange.finished(self, cluster.layers)

        input_gradients = open_pass.backward(outputs, ready, gradients, inputs)
        groups = sorted(norms)
        self.count(torch.stack([norms[k] for k in groups], 1), self.bounds_of(groups, outputs.device), groups)
        return input_gradients

    def _clip(self, cluster: Cluster, uses: list[tuple[Layer, Use]]) -> Tensor:
        factor = self.factor(cluster.group)
        if len(uses) == 1:
            layer, use = uses[0]
            return layer.leaf.clip_into(use, factor, self.sums_of(layer))
        sums = {id(p): self.sum_of(p) for layer, _ in uses for p in layer.parameters.values()}
        return clip_one_by_one([(layer.leaf, use) for layer, use in uses], factor, sums)

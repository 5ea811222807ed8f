"""LayerNorm: the normalised input is not kept; torch's kernel forms each example's gradient from means and deviations."""

from __future__ import annotations

import torch
from torch import nn

from dpbench.kernels.leaf import Sums, Use, accumulation_dtype
from dpbench.kernels.small import SmallLeaf

_forward, _backward = torch.native_layer_norm, torch.ops.aten.native_layer_norm_backward.default


class LayerNormLeaf(SmallLeaf):
    """`nn.LayerNorm`: weight and bias of the normalised shape."""

    modules = (nn.LayerNorm,)

    def __init__(self, module: nn.LayerNorm) -> None:
        super().__init__(module)
        self.shape, self.eps = tuple(module.normalized_shape), module.eps

    def gradients(self, use: Use) -> Sums:
        """Return name -> gradients [B, D]."""
        wide = accumulation_dtype(use.g)
        size = int(torch.Size(self.shape).numel())
        mask = [False, "weight" in self.names, "bias" in self.names]
        unit = torch.ones(size, dtype=wide, device=use.g.device)  # neither gradient depends on weight or bias
        x, g = (v.reshape(len(use.g), -1, size) for v in (use.x, use.g))
        if not x.dtype == g.dtype == wide:
            x, g = x.to(wide), g.to(wide)
        _, mean, reciprocal = _forward(x, [size], unit, unit, self.eps)
        examples = zip(*(v.unbind() for v in (g, x, mean, reciprocal)), strict=True)
        rows = [_backward(g_i, x_i, [size], mean_i, scale_i, unit, unit, mask) for g_i, x_i, mean_i, scale_i in examples]
        if not rows:
            return Sums({name: unit.new_empty(0, size) for name in self.names})
        place = {"weight": 1, "bias": 2}
        return Sums({name: torch.stack([row[place[name]] for row in rows]) for name in self.names})

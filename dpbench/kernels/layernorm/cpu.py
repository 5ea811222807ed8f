"""LayerNorm: [B, D] per-example gradients are small, so they are all formed, each by torch's own kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpbench.kernels.leaf import Factor, Leaf, Sums, Use, accumulation_dtype, weighted_factors

_forward, _backward = torch.native_layer_norm, torch.ops.aten.native_layer_norm_backward.default


class LayerNormLeaf(Leaf):
    """`nn.LayerNorm`: weight and bias of the normalised shape."""

    modules = (nn.LayerNorm,)

    def __init__(self, module: nn.LayerNorm) -> None:
        super().__init__(module)
        self.shape, self.eps = tuple(module.normalized_shape), module.eps

    def _gradients(self, use: Use) -> Sums:
        """name -> [B, D]."""
        wide = accumulation_dtype(use.g)
        size = int(torch.Size(self.shape).numel())
        mask = [False, "weight" in self.names, "bias" in self.names]
        unit = torch.ones(size, dtype=wide, device=use.g.device)  # neither gradient depends on weight or bias
        x, g = (v.reshape(len(use.g), -1, size) for v in (use.x, use.g))
        if not x.dtype == g.dtype == wide:
            x, g = x.to(wide), g.to(wide)
        _, mean, reciprocal = _forward(x, [size], unit, unit, self.eps)
        one = zip(*(v.unbind() for v in (g, x, mean, reciprocal)), strict=True)
        rows = [_backward(g_i, x_i, [size], mean_i, scale_i, unit, unit, mask) for g_i, x_i, mean_i, scale_i in one]
        if not rows:
            return Sums({name: unit.new_empty(0, size) for name in self.names})
        place = {"weight": 1, "bias": 2}
        return Sums({name: torch.stack([row[place[name]] for row in rows]) for name in self.names})

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        one = Use(use.x[index : index + 1], use.g[index : index + 1])
        for name, value in self._gradients(one).items():
            into[name].add_(value[0].view_as(into[name]))

    def sq_norms(self, use: Use) -> Tensor:
        return _squared(self._gradients(use))

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        _add(self._gradients(use), factors, into)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        found = self._gradients(use)
        norms = _squared(found).sqrt()
        factors, finite = weighted_factors(norms, factor)
        if not finite.all():
            found, factors = Sums({n: v[finite] for n, v in found.items()}), factors[finite]
        _add(found, factors, into.zeroed())
        return norms


def _squared(found: Sums) -> Tensor:
    return torch.stack([value.square().sum(1) for value in found.values()]).sum(0)


def _add(found: Sums, factors: Tensor, into: Sums) -> None:
    for name, value in found.items():
        into[name].add_((factors.to(value.dtype) @ value).view_as(into[name]))

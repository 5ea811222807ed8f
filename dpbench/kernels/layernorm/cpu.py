"""LayerNorm: [B, D] per-example gradients are small, so they are formed at once, a few examples at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dpbench.kernels.leaf import Factor, Leaf, Sums, Use, accumulation_dtype, weighted_factors

_CHUNK = 1 << 20  # elements of x normalised at once: stays in cache, and far below the activations themselves


class LayerNormLeaf(Leaf):
    """`nn.LayerNorm`: weight and bias of the normalised shape."""

    modules = (nn.LayerNorm,)

    def __init__(self, module: nn.LayerNorm) -> None:
        super().__init__(module)
        self.shape, self.eps = tuple(module.normalized_shape), module.eps

    def _gradients(self, use: Use) -> Iterator[tuple[slice, Sums]]:
        """Pieces of the batch with their per-example gradients, name -> [b, D]."""
        batch = len(use.g)
        size = int(torch.Size(self.shape).numel())
        x, g = use.x.reshape(batch, -1, size), use.g.reshape(batch, -1, size)
        wide = accumulation_dtype(g)
        step = max(1, _CHUNK // max(1, x.shape[1] * size))
        for start in range(0, batch, step):
            piece = slice(start, min(start + step, batch))
            g_piece = g[piece].to(wide)
            found = Sums()
            if "weight" in self.names:
                normal = nn.functional.layer_norm(x[piece].to(wide), (size,), eps=self.eps)
                found["weight"] = _over_tokens(normal.mul_(g_piece))
            if "bias" in self.names:
                found["bias"] = _over_tokens(g_piece)
            yield piece, found

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        one = Use(use.x[index : index + 1], use.g[index : index + 1])
        for _, found in self._gradients(one):
            for name, value in found.items():
                into[name].add_(value[0].view_as(into[name]))

    def sq_norms(self, use: Use) -> Tensor:
        pieces = [sum(v.square().sum(1) for v in found.values()) for _, found in self._gradients(use)]
        return torch.cat(pieces)  # type: ignore[arg-type]

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        for piece, found in self._gradients(use):
            self._add(found, factors[piece], into)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        into.zeroed()
        norms = []
        for _, found in self._gradients(use):
            norm = torch.stack([v.square().sum(1) for v in found.values()]).sum(0).sqrt()
            factors, finite = weighted_factors(norm, factor)
            if not finite.all():
                found, factors = Sums({n: v[finite] for n, v in found.items()}), factors[finite]
            self._add(found, factors, into)
            norms.append(norm)
        return torch.cat(norms)

    @staticmethod
    def _add(found: Sums, factors: Tensor, into: Sums) -> None:
        for name, value in found.items():
            into[name].add_((factors.to(value.dtype) @ value).view_as(into[name]))


def _over_tokens(values: Tensor) -> Tensor:
    """[b, T, D] -> [b, D]: the sum over T as a product, half the time of `sum` on the CPU."""
    ones = values.new_ones(()).expand(len(values), 1, values.shape[1])
    return torch.bmm(ones, values).squeeze(1)

"""Modules whose per-example gradients are small: all [B, ...] of them are formed at once, then measured and summed."""

from __future__ import annotations

import torch
from torch import Tensor

from dpbench.kernels.leaf import Factor, Leaf, Sums, Use, weighted_factors


class SmallLeaf(Leaf):
    """Subclasses give `gradients`."""

    def gradients(self, use: Use) -> Sums:
        """name -> [B, elements of the parameter], in fp32 or wider."""
        raise NotImplementedError

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        for name, value in self.gradients(Use(use.x[index : index + 1], use.g[index : index + 1])).items():
            into[name].add_(value[0].view_as(into[name]))

    def sq_norms(self, use: Use) -> Tensor:
        return _squared(self.gradients(use))

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        _add(self.gradients(use), factors, into)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        found = self.gradients(use)
        norms = _squared(found).sqrt()
        factors, finite = weighted_factors(norms, factor)
        if not finite.all():
            found, factors = Sums({n: v[finite] for n, v in found.items()}), factors[finite]
        _add(found, factors, into.zeroed())
        return norms


class DeviceSmallLeaf(SmallLeaf):
    """Non-finite examples are masked, not left out: nothing waits for the device."""

    def add_finite(self, use: Use, factors: Tensor, finite: Tensor, into: Sums) -> None:
        _add(_kept(self.gradients(use), finite), torch.where(finite, factors, 0.0), into.zeroed())

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        found = self.gradients(use)
        norms = _squared(found).sqrt()
        factors, finite = weighted_factors(norms, factor)
        _add(_kept(found, finite), factors, into.zeroed())
        return norms


def _kept(found: Sums, finite: Tensor) -> Sums:
    return Sums({name: torch.where(finite[:, None], value, 0.0) for name, value in found.items()})


def _squared(found: Sums) -> Tensor:
    return torch.stack([value.square().sum(1) for value in found.values()]).sum(0)


def _add(found: Sums, factors: Tensor, into: Sums) -> None:
    for name, value in found.items():
        into[name].add_((factors.to(value.dtype) @ value).view_as(into[name]))

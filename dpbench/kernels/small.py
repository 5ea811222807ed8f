"""Modules whose per-example gradients are small: all [B, ...] of them are formed at once, and then measured and summed."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dpbench.kernels.leaf import Factor, Later, Leaf, Sums, Use, weighted_factors


class SmallLeaf(Leaf):
    """The base of such modules. Subclasses define `gradients`."""

    def gradients(self, use: Use) -> Sums:
        """Return name -> [B, elements of the parameter], in fp32 or wider."""
        raise NotImplementedError

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        for name, value in self.gradients(Use(use.x[index : index + 1], use.g[index : index + 1])).items():
            into[name].add_(value[0].view_as(into[name]))

    def sq_norms(self, use: Use) -> Tensor:
        return squared(self.gradients(use))

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        add(self.gradients(use), factors, into)

    def measured(self, use: Use) -> tuple[Tensor, Later]:
        gradients = self.gradients(use)
        return squared(gradients), partial(self.add_formed, gradients)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        gradients = self.gradients(use)
        norms = squared(gradients).sqrt()
        self.add_formed(gradients, *weighted_factors(norms, factor), into)
        return norms

    def add_formed(self, gradients: Sums, factors: Tensor, finite: Tensor, into: Sums) -> None:
        """Add the finite gradients, as in `add_finite`, from gradients already formed."""
        if not finite.all():
            gradients, factors = Sums({name: value[finite] for name, value in gradients.items()}), factors[finite]
        add(gradients, factors, into.zeroed())


class DeviceSmallLeaf(SmallLeaf):
    """The base on a GPU: non-finite examples are masked instead of left out, so that nothing waits for the device."""

    def add_finite(self, use: Use, factors: Tensor, finite: Tensor, into: Sums) -> None:
        self.add_formed(self.gradients(use), factors, finite, into)

    def add_formed(self, gradients: Sums, factors: Tensor, finite: Tensor, into: Sums) -> None:
        masked = Sums({name: torch.where(finite[:, None], value, 0.0) for name, value in gradients.items()})
        add(masked, torch.where(finite, factors, 0.0), into.zeroed())


def squared(gradients: Sums) -> Tensor:
    """Return the [B] squared norms over all parameters of gradients name -> [B, elements]."""
    return torch.stack([value.square().sum(1) for value in gradients.values()]).sum(0)


def add(gradients: Sums, factors: Tensor, into: Sums) -> None:
    """Add sum_i factors[i] x gradient_i to `into`, for gradients name -> [B, elements of the parameter]."""
    for name, value in gradients.items():
        into[name].add_((factors.to(value.dtype) @ value).view_as(into[name]))

"""The interface of an engine to one module: norms and weighted sums of per-example gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


class Sums(dict[str, Tensor]):
    """The running sum of each parameter by its name, in fp32 or wider.

    fresh: The names whose tensor has been allocated and not yet written. Code that adds to it calls `zeroed` first, or writes the
    first term instead of adding it.
    """

    def __init__(self, tensors: Mapping[str, Tensor] = MappingProxyType({}), fresh: Iterable[str] = ()) -> None:
        super().__init__(tensors)
        self.fresh = set(fresh)

    def zeroed(self) -> Sums:
        """Zero the tensors that have not been written, and return the sums."""
        for name in self.fresh:
            self[name].zero_()
        self.fresh.clear()
        return self


@dataclass(frozen=True)
class Factor:
    """The map from norms [B] to factors [B] of one group. Kernels that know `function` by name form the factors on the device."""

    function: str
    bound: float
    gamma: float
    form: Callable[[Tensor, float, float], Tensor]

    def __call__(self, norms: Tensor) -> Tensor:
        return self.form(norms, self.bound, self.gamma)


@dataclass
class Use:
    """One call of a module.

    x: The first argument [B, ...]. g: The gradient of the loss sum with respect to the output [B, ...]. other_arguments, kwargs:
    The other arguments. batched: Which of the leaves of (other_arguments, kwargs) have the batch first. None means that this has
    not been examined; then a tensor whose first dimension is B counts as having the batch first.
    """

    x: Tensor
    g: Tensor
    other_arguments: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    batched: tuple[bool, ...] | None = None

    def keep(self, index: Tensor | slice) -> Use:
        """Return the use with only the examples of a mask [B] or a slice: non-finite ones are left out, as 0 x NaN is NaN."""
        if not self.other_arguments and not self.kwargs:
            return Use(self.x[index], self.g[index])
        leaves, structure = tree_flatten((self.other_arguments, self.kwargs))
        batched = self.batched
        if batched is None or len(batched) != len(leaves):
            batched = tuple(isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == len(self.g) for leaf in leaves)
        selected = [leaf[index] if has_batch else leaf for leaf, has_batch in zip(leaves, batched, strict=True)]
        other_arguments, kwargs = tree_unflatten(selected, structure)
        return Use(self.x[index], self.g[index], other_arguments, kwargs, batched)


Later = Callable[[Tensor, Tensor, Sums], None]
"""A function of (factors [B], finite mask [B], sums that may be fresh) that does `Leaf.add_finite` for examples seen before."""


class Leaf:
    """The per-example gradients of one module's trainable parameters, without those of the modules inside it.

    Subclasses define `add_example`. The other methods are based on it, and are overridden where there is a cheaper way.
    """

    modules: tuple[type[nn.Module], ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()  # those of trainable parameters that it can serve; all where it names none

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        """Return why this leaf cannot serve a module of its classes, or None."""
        for name, parameter in module.named_parameters(recurse=False):
            if cls.dtypes and parameter.requires_grad and parameter.dtype not in cls.dtypes:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in cls.dtypes)
                return f"{name} is {str(parameter.dtype).removeprefix('torch.')}, and it has kernels for {known}"
        return None

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        """Create the leaf of a module.

        Args:
            parameters: Parameters by their names in `module`. By default they are its trainable ones, without those of modules
                inside it.
        """
        if parameters is None:
            parameters = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        self.module = module
        self.parameters = dict(parameters)
        self.names = list(self.parameters)

    def only(self, name: str) -> Leaf:
        """Return the same leaf for one of its parameters alone, as if the others were frozen."""
        leaf = copy.copy(self)
        leaf.names, leaf.parameters = [name], {name: self.parameters[name]}
        return leaf

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        """Add the gradient of example `index` to `into`."""
        raise NotImplementedError

    def sq_norms(self, use: Use) -> Tensor:
        """Return the [B] squared norms over all parameters of the leaf, in fp32 or wider."""
        return torch.stack([squared_norm(gradients) for gradients in examples([(self, use)])])

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        """Add sum_i factors[i] x gradient_i to `into`."""
        for factor, gradients in zip(factors, examples([(self, use)]), strict=True):
            for name, parameter in self.parameters.items():
                into[name].add_(gradients[id(parameter)] * factor)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        """Add the clipped gradients of a group that is this module alone, and return the [B] norms. `into` may be fresh."""
        into.zeroed()
        return clip_one_by_one([(self, use)], factor, {id(p): into[name] for name, p in self.parameters.items()})

    def measured(self, use: Use) -> tuple[Tensor, Later]:
        """Return `sq_norms`, and a function that adds the same examples once the factors are known.

        The function holds x and g, or the gradients where these take less memory, or little.
        """
        return self.sq_norms(use), partial(self.add_finite, use)

    def two_stage(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        """Do `clip_into` for a module whose norms cost less than its gradients: all norms first, then one weighted sum."""
        norms = self.sq_norms(use).sqrt()
        self.add_finite(use, *weighted_factors(norms, factor), into)
        return norms

    def add_finite(self, use: Use, factors: Tensor, finite: Tensor, into: Sums) -> None:
        """Do `add_weighted` over the examples in `finite` [B] alone, as 0 x NaN would be NaN. `into` may be fresh."""
        into.zeroed()
        if finite.all():
            self.add_weighted(use, factors, into)
        elif finite.any():
            self.add_weighted(use.keep(finite), factors[finite], into)


Uses = Sequence[tuple[Leaf, Use]]
"""All uses of the tensors of a group."""


def accumulation_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of norms and sums: fp32 for half precision and fp32, fp64 for fp64."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def examples(uses: Uses) -> Iterator[dict[int, Tensor]]:
    """Yield one example's gradient after another as id(parameter) -> gradient, in buffers that are reused.

    A tensor that several uses share gets the sum of theirs, so that a norm includes cross terms.
    """
    g = uses[0][1].g
    tensors = {id(p): p for leaf, _ in uses for p in leaf.parameters.values()}
    buffers = {key: torch.zeros(p.shape, dtype=accumulation_dtype(g), device=g.device) for key, p in tensors.items()}
    for index in range(len(g)):
        for buffer in buffers.values():
            buffer.zero_()
        for leaf, use in uses:
            leaf.add_example(use, index, Sums({name: buffers[id(p)] for name, p in leaf.parameters.items()}))
        yield buffers


def squared_norm(gradients: Mapping[int, Tensor]) -> Tensor:
    """Return the squared norm over all tensors of one example's gradient."""
    return torch.stack([value.square().sum() for value in gradients.values()]).sum()


def sq_norms(uses: Uses) -> Tensor:
    """Return the [B] squared norms of the sum over all uses."""
    if len(uses) == 1:
        leaf, use = uses[0]
        return leaf.sq_norms(use)
    return torch.stack([squared_norm(gradients) for gradients in examples(uses)])


def clip_one_by_one(uses: Uses, factor: Factor, sums: Mapping[int, Tensor]) -> Tensor:
    """Add the finite clipped gradients of a group to id(parameter) -> its sum, and return the [B] norms."""
    norms = []
    for gradients in examples(uses):
        norm = squared_norm(gradients).sqrt()
        norms.append(norm)
        if torch.isfinite(norm):
            scale = factor(norm.reshape(1))[0]
            for key, value in gradients.items():
                sums[key].add_(value * scale)
    return torch.stack(norms)


def weighted_factors(norms: Tensor, factor: Factor) -> tuple[Tensor, Tensor]:
    """Return the factors [B], 0 where a norm is not finite, and the finite mask [B]."""
    finite = torch.isfinite(norms)
    safe = torch.where(finite, norms, torch.ones_like(norms))
    return factor(safe) * finite, finite

"""The right answer for a sample, with nothing of dpbench in it: one example at a time, fp64, plain autograd, clipped by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from grammar import Sample
from torch import Tensor, nn

Gradient = dict[str, Tensor]
"""Name of a trained tensor (its first, where it is tied) -> gradient."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@lru_cache(maxsize=8)
def values(sample: Sample) -> list[float]:
    """Each example's own loss."""
    loss_values = []
    for index in range(sample.size):
        built = sample.build(torch.float64)
        loss_values.append(built.losses(built.model, built.batch([index])).item())
    return loss_values


@lru_cache(maxsize=8)
def examples(sample: Sample, dtype: torch.dtype = torch.float64, changed: bool = False) -> list[Gradient]:
    """Each example's own gradient, from a model made anew: what one call writes, the next must not see.

    Args:
        changed: after the sample's event; the tensors are those that were trained before it.
    """
    gradients = []
    for index in range(sample.size):
        built = sample.build(dtype)
        tensors = trained(built.model)
        if changed:
            sample.change(built.model)
        value = built.losses(built.model, built.batch([index]))
        assert value.shape == (1,)
        if value.requires_grad:  # not so where no trained tensor is reached
            value.sum().backward()
        gradients.append({name: _gradient(p) for name, p in tensors.items()})
    return gradients


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Dense, fp64; 0 where the loss does not reach the parameter."""
    gradient = parameter.grad
    return (torch.zeros_like(parameter) if gradient is None else gradient.to_dense()).double()


def norm(gradient: Gradient, names: Sequence[str]) -> float:
    return math.sqrt(sum(float(gradient[name].square().sum()) for name in names))


def bounded_sum(
    gradients: Sequence[Gradient], groups: Sequence[Sequence[str]], bounds: Sequence[float], function: str, gamma: float
) -> Gradient:
    """The sum over examples, each group of tensors clipped to its bound; one that is not finite adds nothing."""
    total = {name: torch.zeros_like(g) for name, g in gradients[0].items()}
    for gradient in gradients:
        for names, bound in zip(groups, bounds, strict=True):
            length = norm(gradient, names)
            if math.isfinite(length):
                for name in names:
                    total[name] += gradient[name] * factor(function, length, bound, gamma)
    return total


def factor(function: str, length: float, bound: float, gamma: float) -> float:
    """By the papers' formulas."""
    if function == "abadi":
        return 1.0 if length <= bound else bound / length
    if function == "auto_s":
        return bound / (length + gamma) if length + gamma else 0.0
    if function == "auto_v":
        return bound / length if length else 0.0
    raise NotImplementedError(f"the oracle has no formula for {function}: write it here from its paper")


def typical_norm(sample: Sample) -> float:
    """Between the examples' norms, so that a bound there shortens some and leaves some."""
    gradients = examples(sample)
    lengths = sorted(norm(g, list(g)) for g in gradients)
    finite = [length for length in lengths if math.isfinite(length) and length > 0]
    return finite[len(finite) // 2] if finite else 1.0


def by_layer(model: nn.Module) -> list[set[str]]:
    """Names of the trained tensors of each module, joined where modules share one."""
    first = {id(p): name for name, p in trained(model).items()}
    parts: list[set[str]] = []
    for module in model.modules():
        names = {first[id(p)] for p in module._parameters.values() if p is not None and id(p) in first}
        if names:
            touching = [part for part in parts if part & names]
            parts = [part for part in parts if not part & names] + [names.union(*touching)]
    return parts


def distance(actual: Mapping[str, Tensor], expected: Gradient) -> float:
    """Relative, over all tensors."""
    apart = math.sqrt(sum(float((actual[n].double() - w).square().sum()) for n, w in expected.items()))
    length = math.sqrt(sum(float(w.square().sum()) for w in expected.values()))
    return apart / length if length else apart

"""The oracle: every per-example gradient of weight and bias, in fp64, by autograd, an example at a time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def per_example(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Return name -> [B, ...], fp64, for x and g [B, C, ...]."""
    wide = copy.deepcopy(module).double()
    names = [name for name, _ in wide.named_parameters()]
    rows = []
    for x_i, g_i in zip(x.double().split(1), g.double().split(1), strict=True):
        rows.append(torch.autograd.grad((wide(x_i) * g_i).sum(), list(wide.parameters())))
    return {name: torch.stack([row[place] for row in rows]) for place, name in enumerate(names)}

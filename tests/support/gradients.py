"""The oracle of the kernels: every per-example gradient in fp64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def per_example(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Name -> gradients [B, ...] of a module's parameters for inputs x and output gradients g, by autograd, one by one."""
    wide = copy.deepcopy(module).double().requires_grad_(True)
    rows = []
    for x_i, g_i in zip(x.double() if x.is_floating_point() else x, g.double(), strict=True):
        rows.append(torch.autograd.grad((wide(x_i[None]) * g_i).sum(), list(wide.parameters())))
    return {name: torch.stack([row[place] for row in rows]) for place, (name, _) in enumerate(wide.named_parameters())}


def of_linear(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Weight gradients [B, O, I] and bias gradients [B, O] for x [B, T, I] and g [B, T, O]."""
    x, g = x.double(), g.double()
    return torch.einsum("bto,bti->boi", g, x), g.sum(1)

"""The oracle: every per-example gradient of weight and bias, in fp64, by autograd through torch's own mean and norm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from dpbench.kernels.weight_standard_conv.module import EPS, WeightStandardConv2d


def per_example(module: WeightStandardConv2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Return name -> [B, ...], fp64, for x and g [B, C, H, W]."""
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in module.named_parameters()}
    for x_i, g_i in zip(x.double().split(1), g.double().split(1), strict=True):
        parameters = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
        flat = parameters["weight"].flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        weight = (flat / torch.sqrt(flat.norm(dim=1, keepdim=True) ** 2 + EPS)).view_as(parameters["weight"])
        out = conv2d(x_i, weight, parameters.get("bias"), module.stride, module.padding, module.dilation, module.groups)
        for name, value in zip(parameters, torch.autograd.grad((out * g_i).sum(), list(parameters.values())), strict=True):
            rows[name].append(value)
    return {name: torch.stack(values) for name, values in rows.items()}

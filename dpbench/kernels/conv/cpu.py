"""Convolutions: one example's patches at a time, then a matrix product as for a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from dpbench.kernels.leaf import Leaf, Sums, Use


class ConvLeaf(Leaf):
    """`nn.Conv1d` and `nn.Conv2d`, any stride, padding, dilation and groups: weight [O, C / groups, ...], bias [O]."""

    modules = (nn.Conv1d, nn.Conv2d)

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        g = use.g[index].flatten(1)
        if "weight" in into:
            groups = self.module.groups
            patches = self._patches(use.x[index : index + 1].to(g.dtype)).view(groups, -1, g.shape[1])
            sums = into["weight"].view(groups, len(g) // groups, -1)
            if sums.dtype == g.dtype:
                sums.baddbmm_(g.view(groups, -1, g.shape[1]), patches.mT)
            else:
                sums.add_(torch.bmm(g.view(groups, -1, g.shape[1]), patches.mT))
        if "bias" in into:
            into["bias"].add_(g.sum(1, dtype=into["bias"].dtype))

    def _patches(self, x: Tensor) -> Tensor:
        """x [1, C, ...] -> [C x kernel, positions]; channels of a group lie together."""
        module = self.module
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = pad(x, module._reversed_padding_repeated_twice, mode=mode)
        kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
        if x.dim() == 3:  # [1, C, L] as an image of one row
            x, kernel, dilation, stride = x[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
        return unfold(x, kernel, dilation=dilation, stride=stride)[0]

"""GroupNorm: the gradients of scale and shift, from an input that is normalised again."""

from __future__ import annotations

import torch
from torch import nn

from dpbench.kernels.leaf import Sums, Use, accumulation_dtype
from dpbench.kernels.small import SmallLeaf


class GroupNormLeaf(SmallLeaf):
    """`nn.GroupNorm`: weight and bias [C]; input [B, C, ...]."""

    modules = (nn.GroupNorm,)
    module: nn.GroupNorm

    def gradients(self, use: Use) -> Sums:
        """Return name -> gradients [B, C]."""
        wide = accumulation_dtype(use.g)
        g = use.g.flatten(2).to(wide) if use.g.dim() > 2 else use.g[:, :, None].to(wide)
        gradients = Sums()
        if "weight" in self.names:
            normal = torch.group_norm(use.x.to(wide), self.module.num_groups, None, None, self.module.eps)
            gradients["weight"] = normal.reshape(g.shape).mul_(g).sum(2)
        if "bias" in self.names:
            gradients["bias"] = g.sum(2)
        return gradients

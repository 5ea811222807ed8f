"""RMSNorm: the gradient of the scale, from an input that is normalised again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dpbench.kernels.leaf import Sums, Use, accumulation_dtype
from dpbench.kernels.small import SmallLeaf


class RMSNormLeaf(SmallLeaf):
    """`nn.RMSNorm` and transformers' `LlamaRMSNorm`: weight of the normalised shape."""

    modules = (nn.RMSNorm, LlamaRMSNorm)
    module: nn.RMSNorm | LlamaRMSNorm

    @property
    def module_eps(self) -> float | None:
        """The epsilon of the module; None where torch uses that of the dtype of the input."""
        return self.module.eps if isinstance(self.module, nn.RMSNorm) else self.module.variance_epsilon

    def eps(self, x: Tensor) -> float:
        """Return the epsilon for an input x."""
        return torch.finfo(x.dtype).eps if self.module_eps is None else self.module_eps

    def gradients(self, use: Use) -> Sums:
        """Return the gradients [B, D] of `weight`."""
        wide = accumulation_dtype(use.g)
        size = self.parameters["weight"].numel()
        x, g = (v.reshape(len(use.g), -1, size) for v in (use.x, use.g))
        eps = self.module_eps
        if eps is not None:  # without one torch uses that of the dtype it computes in, so x is not converted
            x = x.to(wide)
        return Sums({"weight": rms_norm(x, [size], None, eps).to(wide).mul_(g.to(wide)).sum(1)})

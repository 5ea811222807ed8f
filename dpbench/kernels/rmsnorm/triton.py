"""RMSNorm by the kernel of the layer norm, without mean and shift."""

from __future__ import annotations

from dpbench.kernels.layernorm.triton import TritonNormLeaf, norm_gradients, tokens_of
from dpbench.kernels.leaf import Sums, Use
from dpbench.kernels.rmsnorm.cpu import RMSNormLeaf


class RMSNormTritonLeaf(TritonNormLeaf, RMSNormLeaf):
    """`nn.RMSNorm` and transformers' `LlamaRMSNorm` by Triton: weight of the normalised shape, up to 8192 elements."""

    modules = RMSNormLeaf.modules

    def gradients(self, use: Use) -> Sums:
        """Return the gradients [B, D] of `weight`."""
        width = self.parameters["weight"].numel()
        gradients = norm_gradients(tokens_of(use.x, width), tokens_of(use.g, width), self.eps(use.x), False, True, False)
        return Sums({"weight": gradients[:, 0]})

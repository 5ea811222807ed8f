"""RMSNorm by the C kernel of the layer norm, without mean and shift."""

from __future__ import annotations

from torch import Tensor

from dpbench.kernels.layernorm.native import NativeNormLeaf, rows
from dpbench.kernels.leaf import Use
from dpbench.kernels.rmsnorm.cpu import RMSNormLeaf


class NativeRMSNormLeaf(NativeNormLeaf, RMSNormLeaf):
    """`nn.RMSNorm` and transformers' `LlamaRMSNorm` in float32 by C: weight of the normalised shape."""

    modules = RMSNormLeaf.modules

    def kernel_arguments(self, use: Use) -> tuple[Tensor, Tensor, float, bool, bool, bool]:
        return (*rows(use, self.parameters["weight"].numel()), self.eps(use.x), False, True, False)

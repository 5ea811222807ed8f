"""LayerNorm by `gradients.c`."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dpbench.kernels import compiled, native
from dpbench.kernels.layernorm.cpu import LayerNormLeaf
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.small import SmallLeaf


@cache
def _library() -> ctypes.CDLL | None:
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    inputs = (pointer, pointer, size, size, size, ctypes.c_float, number, number, number)
    signatures: native.Signatures = {
        "dpbench_norm_gradients_room": (size, (size, number)),
        "dpbench_norm_gradients": (None, (*inputs, pointer, pointer, number)),
        "dpbench_norm_clip": (None, (pointer, size, size, size, pointer, *compiled.CLIPPING, pointer)),
    }
    return native.library(Path(__file__).with_name("gradients.c"), signatures, openmp=True)


def _gradients(x: Tensor, g: Tensor, eps: float, centred: bool, scale: bool, shift: bool) -> Tensor:
    library = _library()
    assert library is not None
    x, g = x.contiguous(), g.contiguous()
    batch, tokens, width = g.shape
    threads = torch.get_num_threads()
    gradients = g.new_empty(batch, int(scale) + int(shift), width)
    room = g.new_empty(library.dpbench_norm_gradients_room(width, threads))
    places = (gradients.data_ptr(), room.data_ptr())
    library.dpbench_norm_gradients(x.data_ptr(), g.data_ptr(), batch, tokens, width, eps, centred, scale, shift, *places, threads)
    return gradients


@torch.library.custom_op("dpbench::native_norm_gradients", mutates_args=())
def norm_gradients(x: Tensor, g: Tensor, eps: float, centred: bool, scale: bool, shift: bool) -> Tensor:
    """Return each example's gradient of the scale, the shift or both, [B, scale + shift, D], for float32 x and g [B, T, D].

    Args:
        centred: Whether it is a layer norm; if not, it is an RMS norm.
    """
    return _gradients(x, g, eps, centred, scale, shift)


@norm_gradients.register_fake
def _(x: Tensor, g: Tensor, eps: float, centred: bool, scale: bool, shift: bool) -> Tensor:
    return g.new_empty((g.shape[0], int(scale) + int(shift), g.shape[2]))


class NativeNormLeaf(SmallLeaf):
    """The base of the normalisations: `gradients` and sums in C, without small operations of torch between them."""

    dtypes = (torch.float32,)

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        return compiled.unavailable(_library()) or super().refuses(module)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        contiguous = all(value.is_contiguous() for value in into.values())
        if isinstance(use.g, FakeTensor) or not contiguous or not compiled.suits(use.x, use.g, *into.values()):
            return super().clip_into(use, factor, into)
        library = _library()
        assert library is not None
        gradients = _gradients(*self.kernel_arguments(use))  # without the operator, whose dispatch takes longer than the work
        batch, kinds, width = gradients.shape
        norms = gradients.new_empty(batch)
        into.zeroed()
        sums = (ctypes.c_void_p * kinds)(*(into[name].data_ptr() for name in self.names))
        with compiled.clipping(factor) as clipping:
            library.dpbench_norm_clip(gradients.data_ptr(), batch, kinds, width, sums, *clipping, norms.data_ptr())
        return norms

    def kernel_arguments(self, use: Use) -> tuple[Tensor, Tensor, float, bool, bool, bool]:
        """Return the arguments of `norm_gradients`."""
        raise NotImplementedError

    def gradients(self, use: Use) -> Sums:
        """Return name -> gradients [B, D]."""
        if not compiled.suits(use.x, use.g):
            return super().gradients(use)
        return Sums(dict(zip(self.names, norm_gradients(*self.kernel_arguments(use)).unbind(1), strict=True)))


class NativeLayerNormLeaf(NativeNormLeaf, LayerNormLeaf):
    """`nn.LayerNorm` in float32 by `gradients.c`: weight and bias of the normalised shape."""

    modules = LayerNormLeaf.modules

    def kernel_arguments(self, use: Use) -> tuple[Tensor, Tensor, float, bool, bool, bool]:
        width = int(torch.Size(self.shape).numel())
        return (*rows(use, width), self.eps, True, "weight" in self.names, "bias" in self.names)


def rows(use: Use, width: int) -> tuple[Tensor, Tensor]:
    """Return the input and the output gradient, [B, T, D] each."""
    x, g = (value.reshape(len(use.g), value[:1].numel() // width, width) for value in (use.x, use.g))
    return x, g

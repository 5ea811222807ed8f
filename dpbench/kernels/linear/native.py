"""Linear layers by `product.c`: norms take no pass over memory, and a single pass little more than the non-private product."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from dpbench.kernels import compiled, native
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.linear.cpu import Conv1DLeaf, LinearLeaf, single_pass

GRAM_BELOW = 4.0
"""As in `cpu.py`, but for a product whose norm is taken in registers; from measurements of the same machine."""
_NO_BIAS, _OF_LEFT, _OF_RIGHT = range(3)  # as in product.c


def gram_is_cheaper(tokens: int, inputs: int, outputs: int) -> bool:
    """Return whether Gram norms and one weighted product are faster than the single pass."""
    return tokens * tokens * (inputs + outputs) < GRAM_BELOW * inputs * outputs


def gram_is_shorter(tokens: int, inputs: int, outputs: int) -> bool:
    """Return whether two Gram matrices, three quarters of them computed, beat the product, which runs a third faster."""
    return tokens * (inputs + outputs) < inputs * outputs


@cache
def _library() -> ctypes.CDLL | None:
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    sides = (pointer, size, size, pointer, size, size)
    sums = (size, size, size, size, pointer, pointer, integer, integer, pointer)
    signatures: native.Signatures = {
        "dpbench_products_room": (size, (size, size, size, integer)),
        "dpbench_products": (None, (*sides, *sums, *compiled.CLIPPING, pointer, pointer, integer)),
    }
    return native.library(Path(__file__).with_name("product.c"), signatures, openmp=True)


def unavailable() -> str | None:
    """Return why `product.c` cannot be used here, or None."""
    return compiled.unavailable(_library())


def _room(left: Tensor, right: Tensor) -> Tensor:
    library = _library()
    assert library is not None
    room: int = library.dpbench_products_room(left.shape[1], left.shape[2], right.shape[2], torch.get_num_threads())
    return torch.empty(room, dtype=torch.float32)


def _products(
    left: Tensor, right: Tensor, weight: Tensor | None = None, written: bool = False, factor: Factor | None = None,
    side: int = _NO_BIAS, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Call `dpbench_products` with left [B, T, L] and right [B, T, R], and return the [B] norms."""
    library = _library()
    assert library is not None
    room = _room(left, right)
    norms = torch.empty(len(left), dtype=torch.float32)
    buffer = None if weight is None else torch.empty(weight.shape, dtype=torch.float32)
    buffer_address, weight_address, bias_address = (
        None if value is None else value.data_ptr() for value in (buffer, weight, bias)
    )
    with compiled.clipping(factor) as clipping:
        library.dpbench_products(
            *(left.data_ptr(), left.stride(0), left.stride(1), right.data_ptr(), right.stride(0), right.stride(1)),
            *(*left.shape, right.shape[2], buffer_address, weight_address, written, side, bias_address),
            *(*clipping, norms.data_ptr(), room.data_ptr(), torch.get_num_threads()),
        )
    return norms


@torch.library.custom_op("dpbench::product_sq_norms", mutates_args=())
def product_sq_norms(left: Tensor, right: Tensor) -> Tensor:
    """Return the [B] squared norms of the products of float32 left [B, T, L] and right [B, T, R], none of which is written."""
    return _products(left, right).square_()


@product_sq_norms.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0])


@register_flop_formula(torch.ops.dpbench.product_sq_norms)
def _(left: torch.Size, right: torch.Size, *_args: object, **_kwargs: object) -> int:
    return 2 * left[0] * left[1] * left[2] * right[2]


class NativeLinearLeaf(LinearLeaf):
    """`nn.Linear` in float32 by `product.c`."""

    modules = LinearLeaf.modules
    dtypes = (torch.float32,)

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        return unavailable() or super().refuses(module)

    def _weight_sq_norms(self, x: Tensor, g: Tensor) -> Tensor:
        if not compiled.suits(x, g) or gram_is_shorter(g.shape[1], x.shape[2], g.shape[2]):
            return super()._weight_sq_norms(x, g)
        left, right = (x, g) if x.shape[2] >= g.shape[2] else (g, x)
        return product_sq_norms(_with_contiguous_rows(left), _with_contiguous_rows(right))

    def _gram_is_cheaper(self, x: Tensor, g: Tensor) -> bool:
        sizes = (g.shape[1], x.shape[2], g.shape[2])
        return gram_is_cheaper(*sizes) if compiled.suits(x, g) else super()._gram_is_cheaper(x, g)

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        x, g = self._flat(use)
        tensors = [x, g, *into.values()]
        if "weight" not in into or not (compiled.suits(*tensors) and all(v.is_contiguous() for v in into.values())):
            return super().clip_into(use, factor, into)
        if self._gram_is_cheaper(x, g):
            return self.two_stage(use, factor, into)
        written = "weight" not in into.fresh
        into.fresh.discard("weight")
        into.zeroed()
        left, right = (_with_contiguous_rows(v) for v in self._sides(x, g))
        if isinstance(left, FakeTensor):  # a simulated step: the same memory, by operations whose work is counted
            room = _room(left, right)
            bias = g.sum(1) if "bias" in into else None
            norms = single_pass(left, right, bias, factor, into["weight"], into.get("bias"), written)
            del room
            return norms
        side = _NO_BIAS if "bias" not in into else _OF_RIGHT if self.transposed else _OF_LEFT
        return _products(left, right, into["weight"], written, factor, side, into.get("bias"))


class NativeConv1DLeaf(NativeLinearLeaf, Conv1DLeaf):
    """transformers' `Conv1D` (GPT-2) in float32 by `product.c`."""

    modules = Conv1DLeaf.modules


def _with_contiguous_rows(value: Tensor) -> Tensor:
    """Return [B, T, F] with contiguous rows."""
    return value if value.stride(2) == 1 and value.stride(1) >= value.shape[2] else value.contiguous()

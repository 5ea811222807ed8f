"""LayerNorm by a Triton kernel: input and output gradient are read once, nothing of their size is written."""

from __future__ import annotations

import torch
import triton
from torch import Tensor, nn

from dpbench.kernels import launch
from dpbench.kernels.layernorm import onchip
from dpbench.kernels.layernorm.cpu import LayerNormLeaf
from dpbench.kernels.leaf import Sums, Use
from dpbench.kernels.small import DeviceSmallLeaf

WIDEST = 8192  # elements of the widest row that a program holds on chip
_TILE = 4096  # elements of x that a program holds on chip at once
_WAVES = 4  # the least number of programs for each multiprocessor, if there are enough tokens
_SHORTEST = 16  # the least number of tokens of a program
_ROWS = 16  # the most tokens that a program holds on chip at once


def rows_and_warps(width: int) -> tuple[int, int]:
    """Return how many tokens a program holds on chip at once, and its warps, for rows of `width`."""
    block = triton.next_power_of_2(width)
    rows = max(1, min(_ROWS, _TILE // block))
    return rows, 16 if block > 4096 else 8 if rows * block > 2048 else 4


@torch.library.custom_op("dpbench::norm_gradients", mutates_args=())
def norm_gradients(x: Tensor, g: Tensor, eps: float, centred: bool, scale: bool, shift: bool) -> Tensor:
    """Return each example's gradient of the scale, the shift or both, [B, scale + shift, D], fp32, for x and g [B, T, D].

    Args:
        centred: Whether it is a layer norm; if not, it is an RMS norm.
    """
    batch, tokens, width = g.shape
    if g.numel() == 0:
        return g.new_zeros((batch, scale + shift, width), dtype=torch.float32)
    programs = _WAVES * launch.sheet_of(g.device).sms
    chunk = max(_SHORTEST, triton.cdiv(batch * tokens, programs))
    chunks = triton.cdiv(tokens, chunk)
    parts = g.new_empty((batch, chunks, scale + shift, width), dtype=torch.float32)
    rows, warps = rows_and_warps(width)
    with launch.on(g):
        onchip.norm_gradients_kernel[(chunks, batch)](
            x, g, parts, tokens, width, eps, chunk, *x.stride(), *g.stride(), CENTRED=centred, SCALE=scale, SHIFT=shift,
            ROWS=rows, BLOCK_D=triton.next_power_of_2(width), num_warps=warps,
        )  # fmt: skip
        return parts[:, 0].clone() if chunks == 1 else parts.sum(1)


@norm_gradients.register_fake
def _(x: Tensor, g: Tensor, eps: float, centred: bool, scale: bool, shift: bool) -> Tensor:
    return g.new_empty((g.shape[0], int(scale) + int(shift), g.shape[2]), dtype=torch.float32)


def tokens_of(value: Tensor, width: int) -> Tensor:
    """Return [B, ..., normalised shape] as [B, T, D]."""
    launch.check_dtype(value, "the input of a normalisation")
    return value.reshape(len(value), value[:1].numel() // width, width) if len(value) else value.new_empty(0, 0, width)


class TritonNormLeaf(DeviceSmallLeaf):
    """The base of the normalisations: rows of up to `WIDEST` elements."""

    dtypes = launch.DTYPES

    @classmethod
    def refuses(cls, module: nn.Module) -> str | None:
        if (width := max(p.numel() for p in module.parameters(recurse=False))) > WIDEST:
            return f"its rows have {width} elements, and a kernel holds {WIDEST}"
        return super().refuses(module)


class LayerNormTritonLeaf(TritonNormLeaf, LayerNormLeaf):
    """`nn.LayerNorm` by Triton: weight and bias of the normalised shape, up to 8192 elements."""

    modules = LayerNormLeaf.modules

    def gradients(self, use: Use) -> Sums:
        """Return name -> gradients [B, D]."""
        width = int(torch.Size(self.shape).numel())
        has = [name in self.names for name in ("weight", "bias")]
        gradients = norm_gradients(tokens_of(use.x, width), tokens_of(use.g, width), self.eps, True, *has)
        return Sums(dict(zip(self.names, gradients.unbind(1), strict=True)))

"""Linear layers by Triton kernels: three ways to the same clipped sum, chosen by `plan`; nothing waits for the device.

The operators `dpbench::linear_*` have fake implementations, so simulation and `torch.compile` see through them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dpbench.kernels import launch, sheet
from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.linear import onchip, plan
from dpbench.kernels.linear.cpu import Conv1DLeaf, LinearLeaf
from dpbench.kernels.onchip import FUNCTIONS, finish_kernel

_GROUP = 8
_PARTS_BLOCK = 256
_too_large: set[tuple[object, ...]] = set()  # single passes that the driver would not place on the chip at once


def _shape(x: Tensor, g: Tensor) -> tuple[int, int, int, int]:
    return g.shape[0], g.shape[1], x.shape[2], g.shape[2]


def _strides(x: Tensor, g: Tensor) -> tuple[int, ...]:
    return (*x.stride(), *g.stride())


def _parts(x: Tensor, g: Tensor, has_bias: bool) -> Tensor:
    """Return the parts [B, P] of the squared norms."""
    batch, tokens, inputs, outputs = _shape(x, g)
    way, tile = plan.norm_way(launch.sheet_of(g.device), batch, tokens, inputs, outputs, launch.rate(g.dtype))
    if way == "direct":
        return _direct_parts(x, g, has_bias, tile)
    parts = g.new_empty((batch, plan.pairs(tokens, tile)), dtype=torch.float32)
    onchip.linear_gram_kernel[(parts.shape[1], batch)](
        x, g, parts, tokens, outputs, inputs, *_strides(x, g), HAS_BIAS=has_bias, BLOCK_T=tile.outputs, BLOCK_F=tile.depth,
        PRECISION=launch.precision(g.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return parts


def _direct_parts(x: Tensor, g: Tensor, has_bias: bool, tile: plan.Tile) -> Tensor:
    batch, tokens, inputs, outputs = _shape(x, g)
    parts = g.new_empty((batch, plan.programs(tile, outputs, inputs)), dtype=torch.float32)
    onchip.linear_norm_kernel[(parts.shape[1], batch)](
        x, g, parts, tokens, outputs, inputs, *_strides(x, g), HAS_BIAS=has_bias, **_blocks(tile, g.dtype)
    )
    return parts


def _blocks(tile: plan.Tile, dtype: torch.dtype) -> dict[str, Any]:
    """Return the launch options of all kernels with tiles of the weight."""
    return {
        "BLOCK_O": tile.outputs,
        "BLOCK_I": tile.inputs,
        "BLOCK_T": tile.depth,
        "GROUP": _GROUP,
        "PRECISION": launch.precision(dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _product(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, parts: Tensor, arrived: Tensor | None, norms: Tensor,
    bound: float, gamma: float, function: int, fresh: bool, tile: plan.Tile, grid: tuple[int], stage: int,
) -> None:  # fmt: skip
    single_pass = stage == onchip.SINGLE_PASS
    onchip.linear_product_kernel[grid](
        x, g, weight, bias, parts, arrived, norms, bound, gamma, *_shape(x, g)[:2], *weight.shape, *_strides(x, g),
        *weight.stride(), bias.stride(0) if bias is not None else 0, STAGE=stage, AHEAD=tile.ahead and single_pass,
        FUNCTION=function, HAS_BIAS=bias is not None, FRESH=fresh, BLOCK_P=_PARTS_BLOCK, launch_cooperative_grid=single_pass,
        **_blocks(tile, g.dtype),
    )  # fmt: skip


def _finish(parts: Tensor, function: int, bound: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the norms [B] and factors [B] from parts of the squared norms."""
    batch, count = parts.shape
    norms, factors = parts.new_empty(batch), parts.new_empty(batch)
    block = min(1024, triton.next_power_of_2(count))
    finish_kernel[(batch,)](parts, norms, factors, count, bound, gamma, FUNCTION=function, BLOCK=block)
    return norms, factors


def _weighted(x: Tensor, g: Tensor, factors: Tensor, weight: Tensor, bias: Tensor | None, fresh: bool) -> None:
    batch, tokens, inputs, outputs = _shape(x, g)
    tile = plan.sum_tile(launch.sheet_of(g.device), batch, tokens, inputs, outputs, launch.rate(g.dtype))
    onchip.linear_weighted_kernel[(plan.programs(tile, outputs, inputs),)](
        x, g, factors, weight, bias, batch, tokens, outputs, inputs, *_strides(x, g), *weight.stride(),
        bias.stride(0) if bias is not None else 0, HAS_BIAS=bias is not None, FRESH=fresh, NORMALISE=g.dtype == torch.float16,
        **_blocks(tile, g.dtype),
    )  # fmt: skip


def _nothing(x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, fresh: bool) -> bool:
    """Return whether there is nothing to add; then zero the sums if they are fresh."""
    empty = 0 in (x.numel(), g.numel())
    if empty and fresh:
        weight.zero_()
        if bias is not None:
            bias.zero_()
    return empty


@torch.library.custom_op("dpbench::linear_sq_norms", mutates_args=())
def linear_sq_norms(x: Tensor, g: Tensor, has_bias: bool) -> Tensor:
    """Return the [B] squared norms, fp32, of g_i^T x_i, and of the column sums of g_i where there is a bias.

    x is [B, T, I] and g [B, T, O].
    """
    if 0 in (x.numel(), g.numel()):
        return g.new_zeros(len(g), dtype=torch.float32)
    with launch.on(g):
        squared = _parts(x, g, has_bias).sum(1)
    return squared.clamp_(min=0)


@linear_sq_norms.register_fake
def _(x: Tensor, g: Tensor, has_bias: bool) -> Tensor:
    return g.new_empty(g.shape[0], dtype=torch.float32)


@torch.library.custom_op("dpbench::linear_add_weighted", mutates_args=("weight", "bias"))
def linear_add_weighted(x: Tensor, g: Tensor, factors: Tensor, weight: Tensor, bias: Tensor | None, fresh: bool) -> None:
    """Add sum_i factors[i] g_i^T x_i to weight [O, I] and bias [O], or write it if they are fresh; factor 0 adds exactly 0."""
    if _nothing(x, g, weight, bias, fresh):
        return
    with launch.on(g):
        _weighted(x, g, factors.to(torch.float32), weight, bias, fresh)


@linear_add_weighted.register_fake
def _(x: Tensor, g: Tensor, factors: Tensor, weight: Tensor, bias: Tensor | None, fresh: bool) -> None:
    return None


@torch.library.custom_op("dpbench::linear_clip", mutates_args=("weight", "bias"))
def linear_clip(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, function: int, bound: float, gamma: float, fresh: bool
) -> Tensor:
    """Add or write sum_i factor(n_i) g_i^T x_i, and the bias likewise, and return the norms n [B], fp32.

    Guarantee: example i adds at most `bound` in L2 over weight and bias together (to rounding), a non-finite one exactly 0.
    """
    norms = g.new_empty(len(g), dtype=torch.float32)
    if _nothing(x, g, weight, bias, fresh):
        return norms.zero_()
    with launch.on(g):
        chosen = plan.choose(launch.sheet_of(g.device), *_shape(x, g), launch.rate(g.dtype))
        if chosen.way == "single" and _single(x, g, weight, bias, norms, function, bound, gamma, fresh, chosen.sums):
            return norms
        norms, factors = _finish(_parts(x, g, bias is not None), function, bound, gamma)
        _weighted(x, g, factors, weight, bias, fresh)
    return norms


@linear_clip.register_fake
def _(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, function: int, bound: float, gamma: float, fresh: bool
) -> Tensor:
    return g.new_empty(g.shape[0], dtype=torch.float32)


def _single(
    x: Tensor, g: Tensor, weight: Tensor, bias: Tensor | None, norms: Tensor, function: int, bound: float, gamma: float,
    fresh: bool, tile: plan.Tile,
) -> bool:  # fmt: skip
    """Run the single pass by one cooperative launch. In the interpreter, where programs run one after another, norms come first.

    Returns:
        False where the driver cannot place all programs at once; nothing has run then.
    """
    programs = plan.programs(tile, *weight.shape)
    arguments = (norms, bound, gamma, function, fresh, tile, (programs,))
    if launch.interpreting():
        _product(x, g, weight, bias, _direct_parts(x, g, bias is not None, tile), None, *arguments, onchip.SUMS)
        return True
    key = (g.device, x.dtype, g.dtype, bias is None, fresh, function, programs, tile)
    if key in _too_large:
        return False
    parts = g.new_empty((len(g), programs), dtype=torch.float32)
    arrived = torch.zeros(len(g), dtype=torch.int32, device=g.device)
    try:
        _product(x, g, weight, bias, parts, arrived, *arguments, onchip.SINGLE_PASS)
    except RuntimeError as error:
        if "cooperative" not in str(error):
            raise
        _too_large.add(key)
        return False
    return True


def _norm_flops(x: tuple[int, ...], g: tuple[int, ...]) -> int:
    """Return the flops of norms alone: of both Gram matrices on and below the diagonal, or of the products."""
    batch, tokens, inputs, outputs = g[0], g[1], x[2], g[2]
    way, tile = plan.norm_way(sheet.H100, batch, tokens, inputs, outputs, "bfloat16")
    if way == "gram":
        return 2 * batch * plan.pairs(tokens, tile) * tile.outputs**2 * (inputs + outputs)
    return 2 * batch * tokens * inputs * outputs


@register_flop_formula(torch.ops.dpbench.linear_sq_norms)
def _(x: torch.Size, g: torch.Size, *_args: object, **_kwargs: object) -> int:
    return _norm_flops(x, g)


@register_flop_formula(torch.ops.dpbench.linear_add_weighted)
def _(x: torch.Size, g: torch.Size, *_args: object, **_kwargs: object) -> int:
    return 2 * g[0] * g[1] * x[2] * g[2]


@register_flop_formula(torch.ops.dpbench.linear_clip)
def _(x: torch.Size, g: torch.Size, *_args: object, **_kwargs: object) -> int:
    """Return the flops of one product in a single pass, else of norms and one product, as chosen for an H100."""
    chosen = plan.choose(sheet.H100, g[0], g[1], x[2], g[2], "bfloat16")
    return 2 * g[0] * g[1] * x[2] * g[2] + (0 if chosen.way == "single" else _norm_flops(x, g))


class LinearTritonLeaf(LinearLeaf):
    """`nn.Linear` by Triton: weight [O, I], bias [O]; inputs and output gradients in fp32, bf16 or fp16."""

    modules = LinearLeaf.modules
    dtypes = launch.DTYPES

    def _sums(self, into: Sums) -> tuple[Tensor, Tensor | None, bool]:
        """Return the weight [O, I], the bias, and whether both are to be overwritten."""
        tensors = {name: into[name] for name in self.names}
        fresh = into.fresh.issuperset(tensors)
        if fresh:
            into.fresh.clear()
        else:
            into.zeroed()
        weight = tensors["weight"]
        return weight.T if self.transposed else weight, tensors.get("bias"), fresh

    def _rows(self, use: Use) -> tuple[Tensor, Tensor]:
        launch.check_dtype(use.g, type(self.module).__name__)
        return launch.rows(use.x), launch.rows(use.g)

    def sq_norms(self, use: Use) -> Tensor:
        if "weight" not in self.names:
            return _columns(use.g).square().sum(1)
        return linear_sq_norms(*self._rows(use), "bias" in self.names)

    def add_weighted(self, use: Use, factors: Tensor, into: Sums) -> None:
        if "weight" not in self.names:
            live = (factors != 0)[:, None]
            into.zeroed()["bias"].add_(factors.float() @ torch.where(live, _columns(use.g), 0.0))
            return
        x, g = self._rows(use)
        weight, bias, fresh = self._sums(into)
        linear_add_weighted(x, g, factors, weight, bias, fresh)

    def add_finite(self, use: Use, factors: Tensor, finite: Tensor, into: Sums) -> None:
        self.add_weighted(use, torch.where(finite, factors, 0.0), into)  # where the factor is 0 nothing is read

    def clip_into(self, use: Use, factor: Factor, into: Sums) -> Tensor:
        function = FUNCTIONS.get(getattr(factor, "function", ""))
        if function is None or "weight" not in self.names:
            return self.two_stage(use, factor, into)  # between two kernels any callable can be applied
        x, g = self._rows(use)
        weight, bias, fresh = self._sums(into)
        return linear_clip(x, g, weight, bias, function, factor.bound, factor.gamma, fresh)


def _columns(g: Tensor) -> Tensor:
    """Return the bias gradients [B, O], fp32."""
    return launch.rows(g).sum(1, dtype=torch.float32)


class Conv1DTritonLeaf(LinearTritonLeaf):
    """transformers' `Conv1D` (GPT-2) by Triton: weight [I, O], read as its transpose."""

    modules = Conv1DLeaf.modules
    transposed = True

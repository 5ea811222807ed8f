"""Shared parts of the Triton kernels: clipping factors, a grid-wide exchange, and the numbering of tiles.

No `from __future__ import annotations` here: Triton reads `tl.constexpr` from the annotations themselves.
"""

import triton
import triton.language as tl

FUNCTIONS = {"abadi": 0, "auto_v": 1, "auto_s": 2}
"""The clipping functions that `factor_of` knows; any other is applied between two kernels."""

ABADI = tl.constexpr(0)
AUTO_V = tl.constexpr(1)


@triton.jit
def factor_of(squared, bound, gamma, FUNCTION: tl.constexpr):
    """Return the norms and the factors, as in `dpbench.privacy.clipping`, from squared norms.

    Guarantee: factor x norm <= bound (to rounding) for a finite norm; the factor is 0 where the norm is not finite.
    """
    norm = tl.sqrt_rn(tl.where(squared < 0, 0.0, squared))  # a maximum would turn NaN into 0
    bound = bound + norm * 0  # of the norms' shape and dtype
    if FUNCTION == ABADI:
        factor = tl.where(norm > bound, tl.div_rn(bound, norm), 1.0)
    elif FUNCTION == AUTO_V:
        factor = tl.where(norm == 0, 0.0, tl.div_rn(bound, norm))
    else:
        factor = tl.where(norm + gamma == 0, 0.0, tl.div_rn(bound, norm + gamma))
    normal = (factor >= 1.17549435e-38) & (factor < float("inf"))  # else 0, as in `dpbench.privacy.clipping.numbers`
    return norm, tl.where(normal & (norm < float("inf")), factor, 0.0)


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr):
    """Return total + left right, in fp32. `widened` is for the interpreter, which has no products of bfloat16."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def narrowed(value, DTYPE: tl.constexpr):
    """Return fp32 values in DTYPE, rounded towards 0.

    Guarantee: no absolute value grows, so that rounding takes no scaled gradient over its bound.
    """
    if tl.float32 == DTYPE:
        return value
    else:
        return value.to(DTYPE, fp_downcast_rounding="rtz")


@triton.jit
def arrive(counter):
    """Signal that everything this program has stored so far may be read."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, programs):
    """Wait until `programs` programs have arrived. All of them must be resident, as in a cooperative launch."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < programs:  # compiled to a load that acquires
        pass


@triton.jit
def lower_triangle(number):
    """Return (row, column), column <= row, of the `number`-th tile on or below the diagonal."""
    row = ((tl.sqrt_rn(8.0 * number + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > number, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= number, row + 1, row)
    return row, number - row * (row + 1) // 2


@triton.jit
def gram(
    v, rows, columns, down, across, width, v_f,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Return the products [BLOCK_T, BLOCK_T], fp32, of the tokens at offsets `rows` with those at `columns`; 0 where masked.

    DTYPE is that of both sides, as in the product of the layer.
    """
    tile = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
    for start in range(0, width, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F).to(tl.int64)
        inside = (f < width)[None, :]
        upper = tl.load(v + rows[:, None] + f[None, :] * v_f, mask=inside & down[:, None], other=0.0)
        lower = tl.load(v + columns[:, None] + f[None, :] * v_f, mask=inside & across[:, None], other=0.0)
        tile = dot(upper.to(DTYPE), tl.trans(lower.to(DTYPE)), tile, PRECISION)
    return tile


@triton.jit
def add_up(parts, count, BLOCK: tl.constexpr):
    """Return the sum of `count` fp32 numbers, the same in every program. It skips the first-level cache, which may be stale."""
    places = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        total += tl.load(parts + start + places, mask=start + places < count, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)


@triton.jit
def finish_kernel(parts, norms, factors, count, bound, gamma, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    """Write norms [B] and factors [B] from the parts [B, count] of squared norms; one program an example."""
    example = tl.program_id(0).to(tl.int64)
    norm, factor = factor_of(add_up(parts + example * count, count, BLOCK), bound, gamma, FUNCTION)
    tl.store(norms + example, norm)
    tl.store(factors + example, factor)

"""Triton kernels of the clipped weight gradient. Shapes: x [B, T, I], g [B, T, O], weight [O, I] by strides, bias [O].

G_i = g_i^T x_i is one example's weight gradient. All strides are in elements; all offsets are 64-bit.
No `from __future__ import annotations` here: Triton reads `tl.constexpr` from the annotations themselves.
"""

import triton
import triton.language as tl

from dpbench.kernels.onchip import add_up, arrive, dot, factor_of, gram, lower_triangle, narrowed, wait

SUMS, SINGLE_PASS = 0, 1
"""Stages of `linear_product_kernel`."""

_SINGLE_PASS = tl.constexpr(SINGLE_PASS)


@triton.jit
def _tile(number, outputs, inputs, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, GROUP: tl.constexpr):
    """Return rows o [BLOCK_O] and columns i [BLOCK_I] of tile `number`; GROUP rows of tiles share columns in the cache."""
    down, across = tl.cdiv(outputs, BLOCK_O), tl.cdiv(inputs, BLOCK_I)
    first = number // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    inside = number % (GROUP * across)
    o = (first + inside % height) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = inside // height * BLOCK_I + tl.arange(0, BLOCK_I)
    return o.to(tl.int64), i.to(tl.int64)


@triton.jit
def _product(
    x, g, o, i, tokens, outputs, inputs, x_t, x_i, g_t, g_o,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return one example's tile of g^T x [BLOCK_O, BLOCK_I], and of the column sums of g [BLOCK_O]; fp32."""
    tile = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    column = tl.zeros([BLOCK_O], tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T).to(tl.int64)
        inside = (t < tokens)[:, None]
        g_tile = tl.load(g + t[:, None] * g_t + o[None, :] * g_o, mask=inside & (o < outputs)[None, :], other=0.0)
        x_tile = tl.load(x + t[:, None] * x_t + i[None, :] * x_i, mask=inside & (i < inputs)[None, :], other=0.0)
        tile = dot(tl.trans(g_tile), x_tile.to(g_tile.dtype), tile, PRECISION)
        if HAS_BIAS:
            column += tl.sum(g_tile.to(tl.float32), 0)
    return tile, column


@triton.jit
def _squared(tile, column, first, HAS_BIAS: tl.constexpr):
    """Return the sum of squares of a tile, with those of the bias where the tile is the `first` across."""
    total = tl.sum(tl.sum(tile * tile, 1), 0)
    if HAS_BIAS:
        total += tl.where(first, tl.sum(column * column, 0), 0.0)
    return total


@triton.jit
def _store(
    tile, column, weight, bias, o, i, outputs, inputs, w_o, w_i, bias_o, HAS_BIAS: tl.constexpr, FRESH: tl.constexpr,
):  # fmt: skip
    """Write a tile of the sum, or add it to the sum in memory. Only the first tile across does so for the bias."""
    mask = (o < outputs)[:, None] & (i < inputs)[None, :]
    into = weight + o[:, None] * w_o + i[None, :] * w_i
    if not FRESH:
        tile += tl.load(into, mask=mask, other=0.0)
    tl.store(into, tile, mask=mask)
    if HAS_BIAS:
        bias_mask = (o < outputs) & (tl.min(i, 0) == 0)
        if not FRESH:
            column += tl.load(bias + o * bias_o, mask=bias_mask, other=0.0)
        tl.store(bias + o * bias_o, column, mask=bias_mask)


@triton.jit
def _clipped(parts, norms, tile, column, example, programs, bound, gamma, FUNCTION: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return (factor x tile, factor x column) of an example whose squared norm is in `parts`; 0 for a non-finite one."""
    norm, factor = factor_of(add_up(parts + example * programs, programs, BLOCK_P), bound, gamma, FUNCTION)
    if tl.program_id(0) == 0:
        tl.store(norms + example, norm)
    return tl.where(factor > 0, tile * factor, 0.0), tl.where(factor > 0, column * factor, 0.0)


@triton.jit
def linear_norm_kernel(
    x, g, parts, tokens, outputs, inputs, x_b, x_t, x_i, g_b, g_t, g_o,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write the parts [B, tiles] of the squared norms, from direct products that are not kept; grid (tiles, B)."""
    number, example = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o, i = _tile(number, outputs, inputs, BLOCK_O, BLOCK_I, GROUP)
    product, column = _product(
        x + example * x_b, g + example * g_b, o, i, tokens, outputs, inputs, x_t, x_i, g_t, g_o,
        BLOCK_O, BLOCK_I, BLOCK_T, HAS_BIAS, PRECISION,
    )  # fmt: skip
    tl.store(parts + example * tl.num_programs(0) + number, _squared(product, column, tl.min(i, 0) == 0, HAS_BIAS))


@triton.jit
def linear_product_kernel(
    x, g, weight, bias, parts, arrived, norms, bound, gamma, batch, tokens, outputs, inputs,
    x_b, x_t, x_i, g_b, g_t, g_o, w_o, w_i, bias_o,
    STAGE: tl.constexpr, AHEAD: tl.constexpr, FUNCTION: tl.constexpr, HAS_BIAS: tl.constexpr, FRESH: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Form the clipped sum by direct products, with one program for each tile of the weight.

    SINGLE_PASS: weight (+)= sum_i factor_i G_i in a single pass. The program keeps its tiles of sum and example on chip,
    and the norm is exchanged across the grid, whose programs must all be resident. AHEAD: the product of the next example is
    formed while the norm of one is being exchanged, which takes one more tile on chip.
    SUMS: the sum alone, from parts formed before. parts [B, tiles] are fp32, arrived [B] int32 zeros, and norms [B] fp32.
    """
    number, programs = tl.program_id(0), tl.num_programs(0)
    o, i = _tile(number, outputs, inputs, BLOCK_O, BLOCK_I, GROUP)
    first = tl.min(i, 0) == 0
    total = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    total_column = tl.zeros([BLOCK_O], tl.float32)
    begin = 0
    if AHEAD:
        begin = 1
        last, last_column = _product(
            x, g, o, i, tokens, outputs, inputs, x_t, x_i, g_t, g_o, BLOCK_O, BLOCK_I, BLOCK_T, HAS_BIAS, PRECISION
        )
        tl.store(parts + number, _squared(last, last_column, first, HAS_BIAS))
        arrive(arrived)
    for index in range(begin, batch):
        example = tl.cast(index, tl.int64)
        product, column = _product(
            x + example * x_b, g + example * g_b, o, i, tokens, outputs, inputs, x_t, x_i, g_t, g_o,
            BLOCK_O, BLOCK_I, BLOCK_T, HAS_BIAS, PRECISION,
        )  # fmt: skip
        if STAGE == _SINGLE_PASS:
            tl.store(parts + example * programs + number, _squared(product, column, first, HAS_BIAS))
            arrive(arrived + example)
        if AHEAD:
            wait(arrived + example - 1, programs)
            tile, bias_tile = _clipped(parts, norms, last, last_column, example - 1, programs, bound, gamma, FUNCTION, BLOCK_P)
            last, last_column = product, column
        else:
            if STAGE == _SINGLE_PASS:
                wait(arrived + example, programs)
            tile, bias_tile = _clipped(parts, norms, product, column, example, programs, bound, gamma, FUNCTION, BLOCK_P)
        total += tile
        total_column += bias_tile
    if AHEAD:
        end = tl.cast(batch - 1, tl.int64)
        wait(arrived + end, programs)
        tile, bias_tile = _clipped(parts, norms, last, last_column, end, programs, bound, gamma, FUNCTION, BLOCK_P)
        total += tile
        total_column += bias_tile
    _store(total, total_column, weight, bias, o, i, outputs, inputs, w_o, w_i, bias_o, HAS_BIAS, FRESH)


@triton.jit
def linear_gram_kernel(
    x, g, parts, tokens, outputs, inputs, x_b, x_t, x_i, g_b, g_t, g_o,
    HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the parts [B, tiles] of ||G_i||^2 = sum_tu (x_t . x_u)(g_t . g_u), for tiles not above the diagonal; grid (tiles, B).

    A bias is an input that is always 1: it adds 1 to every x_t . x_u. Neither T x T matrix leaves the chip. Where tokens cancel,
    rounding could make the sum too small. The most that it can take away, a share of the terms with t = u, is therefore added.
    """
    number, example = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, column = lower_triangle(number)
    rows = row * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    columns = column * BLOCK_T + tl.arange(0, BLOCK_T).to(tl.int64)
    down, across = rows < tokens, columns < tokens
    dtype: tl.constexpr = g.dtype.element_ty
    inner = gram(x + example * x_b, rows * x_t, columns * x_t, down, across, inputs, x_i, BLOCK_T, BLOCK_F, PRECISION, dtype)
    if HAS_BIAS:
        inner += 1.0  # rows past the end have g = 0
    inner *= gram(g + example * g_b, rows * g_t, columns * g_t, down, across, outputs, g_o, BLOCK_T, BLOCK_F, PRECISION, dtype)
    total = tl.sum(tl.sum(inner, 1), 0)
    diagonal = tl.sum(tl.sum(tl.where(rows[:, None] == columns[None, :], inner, 0.0), 1), 0)
    rounding: tl.constexpr = 2.0**-11 if PRECISION == "tf32" else 2.0**-20
    tl.store(parts + example * tl.num_programs(0) + number, tl.where(row == column, total + rounding * diagonal, 2 * total))


@triton.jit
def linear_weighted_kernel(
    x, g, factors, weight, bias, batch, tokens, outputs, inputs, x_b, x_t, x_i, g_b, g_t, g_o, w_o, w_i, bias_o,
    HAS_BIAS: tl.constexpr, FRESH: tl.constexpr, NORMALISE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_T: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write or add sum_i factors[i] G_i, and the bias likewise, by one product over all tokens, scaled as they are loaded.

    The values of an example whose factor is 0 are replaced by 0, as they may be NaN. NORMALISE: factors are divided by the
    largest first, and the sum is multiplied by it, so that a small factor does not push g below fp16's range. In half precision
    the scaled values are rounded towards 0.
    """
    o, i = _tile(tl.program_id(0), outputs, inputs, BLOCK_O, BLOCK_I, GROUP)
    largest = 1.0
    if NORMALISE:
        largest = 1e-37
        for start in range(0, batch, 128):
            places = start + tl.arange(0, 128)
            largest = tl.maximum(largest, tl.max(tl.abs(tl.load(factors + places, mask=places < batch, other=0.0)), 0))
    tile = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    total = tl.zeros([BLOCK_O], tl.float32)
    rows = batch * tokens
    for start in range(0, rows, BLOCK_T):
        k = start + tl.arange(0, BLOCK_T)
        example = (k // tokens).to(tl.int64)
        t = (k % tokens).to(tl.int64)
        factor = tl.load(factors + example, mask=k < rows, other=0.0)
        live = (factor != 0)[:, None]
        if NORMALISE:
            factor = factor / largest
        g_rows, x_rows = g + (example * g_b + t * g_t)[:, None], x + (example * x_b + t * x_t)[:, None]
        inside = (k < rows)[:, None]  # not `live`: a mask that waits for a load would keep these from being fetched ahead
        g_tile = tl.load(g_rows + o[None, :] * g_o, mask=inside & (o < outputs)[None, :], other=0.0)
        x_tile = tl.load(x_rows + i[None, :] * x_i, mask=inside & (i < inputs)[None, :], other=0.0)
        x_tile = tl.where(live, x_tile, 0.0).to(x_tile.dtype)
        scaled = tl.where(live, g_tile.to(tl.float32) * factor[:, None], 0.0)
        tile = dot(tl.trans(narrowed(scaled, g_tile.dtype)), x_tile.to(g_tile.dtype), tile, PRECISION)
        if HAS_BIAS:
            total += tl.sum(scaled, 0)
    if NORMALISE:
        tile *= largest
        total *= largest
    _store(tile, total, weight, bias, o, i, outputs, inputs, w_o, w_i, bias_o, HAS_BIAS, FRESH)

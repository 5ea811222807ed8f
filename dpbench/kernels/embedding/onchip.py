"""Triton kernels of an embedding table's gradient. No `from __future__ import annotations`: see `kernels/onchip.py`."""

import triton
import triton.language as tl

from dpbench.kernels.onchip import gram, lower_triangle


@triton.jit
def embedding_norm_kernel(
    ids, order, g, parts, tokens, width, padding, g_b, g_t, g_d,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the parts [B, tiles] of ||sum of the rows of equal ids||^2 = sum_tu [id_t = id_u] g_t . g_u; grid (tiles, B).

    ids [B, T] are sorted within each example, and order [B, T] has their original positions. A tile whose ids have nothing in
    common, which is almost every tile off the diagonal, is 0 without reading g.
    """
    number, example = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, column = lower_triangle(number)
    rows = row * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = column * BLOCK_T + tl.arange(0, BLOCK_T)
    row_ids = tl.load(ids + example * tokens + rows, mask=rows < tokens, other=-1)
    column_ids = tl.load(ids + example * tokens + columns, mask=columns < tokens, other=-1)
    down, across = (rows < tokens) & (row_ids != padding), (columns < tokens) & (column_ids != padding)
    total = 0.0
    if tl.max(column_ids, 0) >= tl.load(ids + example * tokens + row * BLOCK_T):
        at_rows = tl.load(order + example * tokens + rows, mask=down, other=0) * g_t
        at_columns = tl.load(order + example * tokens + columns, mask=across, other=0) * g_t
        dtype: tl.constexpr = g.dtype.element_ty
        tile = gram(g + example * g_b, at_rows, at_columns, down, across, width, g_d, BLOCK_T, BLOCK_F, PRECISION, dtype)
        same = (row_ids[:, None] == column_ids[None, :]) & down[:, None] & across[None, :]
        total = tl.sum(tl.sum(tl.where(same, tile, 0.0), 1), 0)
        total = tl.where(row == column, total, 2 * total)
    tl.store(parts + example * tl.num_programs(0) + number, total)


@triton.jit
def embedding_add_kernel(
    ids, order, g, factors, weight, count, tokens, width, padding, g_b, g_t, g_d, w_v, w_d,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add to weight[v] the sum of factor x g over every token of id v, in order; grid (B T, blocks of D).

    ids [B T] are sorted, and order has their original positions. The program of an id's first position adds all of them and alone
    writes its row, so there are no atomics and the bits are the same every time. A token whose factor is 0 is not read.
    """
    first = tl.program_id(0)
    token_id = tl.load(ids + first)
    before = tl.load(ids + first - 1, mask=first > 0, other=-1)
    if (token_id == before) | (token_id == padding):
        return
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    total = tl.zeros([BLOCK_D], tl.float32)
    start = first
    going = 1
    while going > 0:
        place = start + tl.arange(0, ROWS)
        same = tl.load(ids + place, mask=place < count, other=-1) == token_id
        at = tl.load(order + place, mask=same, other=0)
        factor = tl.load(factors + at // tokens, mask=same, other=0.0)
        live = same & (factor != 0)
        from_rows = g + (at // tokens * g_b + at % tokens * g_t)[:, None]
        gradients = tl.load(from_rows + d[None, :] * g_d, mask=live[:, None] & (d < width)[None, :], other=0.0)
        total += tl.sum(gradients.to(tl.float32) * factor[:, None], 0)
        start += ROWS
        going = tl.min(same.to(tl.int32), 0)
    into = weight + token_id * w_v + d * w_d
    tl.store(into, tl.load(into, mask=d < width, other=0.0) + total, mask=d < width)

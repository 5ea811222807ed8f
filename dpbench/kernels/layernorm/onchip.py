"""The per-example gradients of a normalisation's scale and shift. No `from __future__ import annotations`: see `onchip.py`."""

import triton
import triton.language as tl


@triton.jit
def norm_gradients_kernel(
    x, g, parts, tokens, width, eps, chunk, x_b, x_t, x_d, g_b, g_t, g_d,
    CENTRED: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the parts [B, chunks, SCALE + SHIFT, D], fp32, of sum_t g_t xhat_t and sum_t g_t; grid (chunks, B).

    Each program sums `chunk` tokens. Mean and deviation are formed again from x, which is read once. CENTRED selects layer norm;
    otherwise it is RMS norm.
    """
    number, example = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    scale = tl.zeros([BLOCK_D], tl.float32)
    shift = tl.zeros([BLOCK_D], tl.float32)
    begin = number * chunk
    end = tl.minimum(begin + chunk, tokens)
    for start in range(begin, end, ROWS):
        t = start + tl.arange(0, ROWS).to(tl.int64)
        mask = (t < end)[:, None] & (d < width)[None, :]
        g_tile = tl.load(g + example * g_b + t[:, None] * g_t + d[None, :] * g_d, mask=mask, other=0.0).to(tl.float32)
        if SCALE:
            x_tile = tl.load(x + example * x_b + t[:, None] * x_t + d[None, :] * x_d, mask=mask, other=0.0).to(tl.float32)
            if CENTRED:
                x_tile = tl.where(mask, x_tile - (tl.sum(x_tile, 1) / width)[:, None], 0.0)
            deviation = tl.sqrt_rn(tl.sum(x_tile * x_tile, 1) / width + eps)
            scale += tl.sum(tl.where(mask, g_tile * x_tile / deviation[:, None], 0.0), 0)
        if SHIFT:
            shift += tl.sum(g_tile, 0)
    into = parts + (example * tl.num_programs(0) + number) * (SCALE + SHIFT) * width + d
    if SCALE:
        tl.store(into, scale, mask=d < width)
    if SHIFT:
        tl.store(into + SCALE * width, shift, mask=d < width)

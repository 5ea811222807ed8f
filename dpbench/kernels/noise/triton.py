"""Noise in one pass over a sum: nothing but the sum is read or written.

No `from __future__ import annotations` here: Triton reads `tl.constexpr` from the annotations themselves.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dpbench.kernels import launch

_BLOCK = 2048
_LARGEST = 1 << 34  # elements whose quarters a 32-bit counter numbers
_TURN = tl.constexpr(2 * math.pi)


@triton.jit
def _pair(radius, angle):
    """Return two independent standard normal numbers from two uint32 (Box-Muller); the logarithm's argument is in (0, 1]."""
    length = tl.sqrt_rn(-2.0 * tl.log(radius.to(tl.float32) * 2.0**-32 + 2.0**-33))
    turn = angle.to(tl.int32, bitcast=True).to(tl.float32) * (_TURN * 2.0**-32)
    return length * tl.cos(turn), length * tl.sin(turn)


@triton.jit
def _perturb(into, places, count, noise, std, scale):
    mask = places < count
    value = tl.load(into + places, mask=mask, other=0.0)
    tl.store(into + places, (value + (noise * std).to(value.dtype)) * scale, mask=mask)


@triton.jit(do_not_specialize=["key", "number", "step"])
def noise_add_kernel(into, count, std, scale, key, number, step, BLOCK: tl.constexpr):
    """Set into = (into + std N(0, 1)) scale, with four numbers a Philox call, whose counter is (place, 0, number, step)."""
    quarter: tl.constexpr = BLOCK // 4
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, quarter)
    place = (program * quarter + lane).to(tl.uint32)
    zero = place * 0
    a, b, c, d = tl.philox(key, place, zero, zero + number.to(tl.uint32), zero + step.to(tl.uint32))
    first, second = _pair(a, b)
    third, fourth = _pair(c, d)
    base = program * BLOCK + lane
    _perturb(into, base, count, first, std, scale)
    _perturb(into, base + quarter, count, second, std, scale)
    _perturb(into, base + 2 * quarter, count, third, std, scale)
    _perturb(into, base + 3 * quarter, count, fourth, std, scale)


@torch.library.custom_op("dpbench::noise_add_", mutates_args=("into",))
def noise_add_(into: Tensor, std: float, scale: float, key: int, number: int, step: int) -> None:
    """Set into [n] = (into + std N(0, 1)) x scale in place, contiguous, fp32 or fp64 (whose noise has fp32's 24 bits).

    Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) under the 64-bit `key`.

    Guarantee: no two (element, number, step) below 2^34, 2^32 and 2^32 share a draw under one key; |draw| <= 6.8. Philox is no
    cipher: the noise protects the sum only from those who cannot search for the key.
    """
    if into.numel() > _LARGEST:
        raise ValueError(f"{into.numel()} elements, more than can be numbered: {_LARGEST}")
    if into.numel():
        grid = (triton.cdiv(into.numel(), _BLOCK),)
        with launch.on(into):
            noise_add_kernel[grid](into, into.numel(), std, scale, key, number, step, BLOCK=_BLOCK)


@noise_add_.register_fake
def _(into: Tensor, std: float, scale: float, key: int, number: int, step: int) -> None:
    return None

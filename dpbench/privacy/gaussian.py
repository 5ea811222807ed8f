"""Normal numbers on the CPU from an AES keystream: several times faster than torch's generator, and cryptographically secure.

Where it can be compiled, `gaussian.c` does the arithmetic in one pass over memory; numpy does it otherwise.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from dpbench.kernels import native

KEY_BYTES = 16
PIECE = 1 << 18
"""The most elements that one call perturbs: so many that threads seldom wait for the interpreter's lock."""

_BLOCK = 16  # bytes that the cipher needs behind its output
_ZEROS = memoryview(bytes(PIECE * 8))  # encrypting zeros gives the keystream itself
_WORDS: dict[Any, tuple[Any, Any]] = {np.dtype("f4"): (np.uint32, np.int32), np.dtype("f8"): (np.uint64, np.int64)}

Array = np.ndarray[Any, Any]


@cache
def compiled() -> Callable[..., None] | None:
    """Return `dpbench_perturb` of `gaussian.c`, or None where it cannot be compiled."""
    arguments = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_float, ctypes.c_float)
    library = native.library(Path(__file__).with_suffix(".c"), {"dpbench_perturb": (None, arguments)})
    return None if library is None else library.dpbench_perturb


@dataclass
class Scratch:
    """Memory for one piece: `keystream` in bytes; `radius`, `angle` and `wave` with half as many elements as the piece."""

    keystream: Array
    radius: Array
    angle: Array
    wave: Array

    @classmethod
    def inside(cls, room: Array, dtype: Any) -> Scratch:
        """Return scratch memory inside a uint8 array of `room_for(n, dtype)` bytes."""
        half = (len(room) - _BLOCK) // 5
        parts = [room[k * half : (k + 1) * half].view(dtype) for k in range(3)]
        return cls(room[3 * half :], *parts)

    @staticmethod
    def room_for(elements: int, dtype: Any) -> int:
        """Return the bytes needed for pieces of up to `elements`."""
        return 5 * ((elements + 1) // 2) * np.dtype(dtype).itemsize + _BLOCK


class Gaussian:
    """A stream of independent standard normal numbers: AES-128 in counter mode, through the Box-Muller transform.

    Guarantee: without the key they cannot be distinguished from independent normal numbers rounded to the dtype, unless AES is
    broken. |number| <= 6.8 in fp32; a normal number would be larger once in 10^11 times.

    position is the number of keystream bytes used so far; a stream created with a position continues from there.
    """

    def __init__(self, key: bytes, position: int = 0) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes, not {KEY_BYTES}")
        block, offset = divmod(position, _BLOCK)
        self._stream = Cipher(AES(key), CTR(block.to_bytes(_BLOCK, "big"))).encryptor()
        self._stream.update(bytes(offset))
        self.position = position

    def perturb_(self, values: Array, scale: float, std: float, scratch: Scratch) -> None:
        """Set values = scale x values + N(0, std^2) in place, with one number for each element.

        Args:
            values: [n], n <= PIECE, float32 or float64, contiguous.
        """
        half = (len(values) + 1) // 2
        unsigned, signed = _WORDS[values.dtype]
        bits = 8 * values.dtype.itemsize
        size = 2 * half * values.dtype.itemsize
        self._stream.update_into(_ZEROS[:size], scratch.keystream.data[: size + _BLOCK])
        self.position += size
        words = scratch.keystream[:size].view(unsigned)
        if values.dtype == np.float32 and (perturb := compiled()) is not None:
            perturb(values.ctypes.data, len(values), words.ctypes.data, scale, std)
            return
        number = values.dtype.type
        radius, angle, wave = scratch.radius[:half], scratch.angle[:half], scratch.wave[:half]
        np.copyto(radius, words[:half], casting="unsafe")
        radius *= number(2.0**-bits)
        radius += number(2.0 ** -(bits + 1))  # in (0, 1]: its logarithm is finite
        np.log(radius, out=radius)
        radius *= number(-2)
        np.sqrt(radius, out=radius)
        radius *= number(std)
        np.copyto(angle, words[half:].view(signed), casting="unsafe")
        angle *= number(math.pi * 2.0 ** (1 - bits))
        values *= number(scale)
        for curve, part in ((np.cos, values[:half]), (np.sin, values[half:])):
            normals = wave[: len(part)]
            curve(angle[: len(part)], out=normals)
            normals *= radius[: len(part)]
            part += normals

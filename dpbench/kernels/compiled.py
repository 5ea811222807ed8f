"""Shared parts of the kernels in C: when they can be used, and how they receive a clipping function."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dpbench.kernels.leaf import Factor

FUNCTIONS = {"abadi": 0, "auto_v": 1, "auto_s": 2}
"""The clipping functions that `clipping.h` knows. For any other it calls back for each factor."""
_OTHER = 3
_FactorOfNorm = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)

CLIPPING = (ctypes.c_int, ctypes.c_double, ctypes.c_double, _FactorOfNorm)
"""The C types of the values that `clipping` yields."""


def unavailable(library: ctypes.CDLL | None) -> str | None:
    """Return why kernels in C cannot run here, or None."""
    if library is not None:
        return None
    if os.environ.get("DPBENCH_NATIVE") == "0":
        return "DPBENCH_NATIVE is 0"
    return "there is no C compiler that works, or torch runs without GNU's OpenMP"


def suits(*values: Tensor) -> bool:
    """Return whether all are float32 on the CPU: under autocast a layer's input and output gradient are not."""
    return all(value.dtype == torch.float32 and value.device.type == "cpu" for value in values)


@contextmanager
def clipping(factor: Factor | None) -> Iterator[tuple[Any, ...]]:
    """Yield (function, bound, gamma, callback) for a call into C, and raise afterwards what went wrong in the callback."""
    failures: list[Exception] = []

    def factor_of_norm(norm: float) -> float:
        assert factor is not None
        try:
            return float(factor(torch.tensor([norm], dtype=torch.float32)).item())
        except Exception as failure:
            failures.append(failure)
            return 0.0

    if factor is None:
        yield _OTHER, 0.0, 0.0, _FactorOfNorm()
    elif factor.function in FUNCTIONS:
        yield FUNCTIONS[factor.function], factor.bound, factor.gamma, _FactorOfNorm()
    else:
        yield _OTHER, factor.bound, factor.gamma, _FactorOfNorm(factor_of_norm)
    if failures:
        raise failures[0]

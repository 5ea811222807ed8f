"""Whether Triton kernels can run, and the options of their launches. Triton is imported only when it is needed."""

from __future__ import annotations

import importlib.util
import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dpbench.errors import DpbenchError
from dpbench.kernels import sheet
from dpbench.kernels.sheet import Sheet

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cuda", "meta")  # where `auto` uses Triton's kernels: tensors on `meta` represent those of a GPU
OLDEST = (8, 0)  # compute capability with bfloat16 products


@cache
def interpreting() -> bool:
    """Return whether kernels run in Triton's interpreter, on the CPU (`TRITON_INTERPRET=1` when Triton was imported)."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton.runtime.jit import JITFunction

    from dpbench.kernels import onchip

    return not isinstance(onchip.finish_kernel, JITFunction)


def unavailable(device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on tensors of `device`, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting() or device.type == "meta":
        return None
    if device.type != "cuda":
        return f"its tensors are on {device.type}, and Triton's interpreter is not on"
    if torch.version.hip is not None:
        return "they are compiled and tested for CUDA alone"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST[0]}.{OLDEST[1]}"
    return None


@cache
def sheet_of(device: torch.device) -> Sheet:
    """Return the sheet of a device; that of an H100 where there is none, as in the interpreter."""
    if device.type != "cuda":
        return sheet.H100
    return sheet.sheet_of(torch.cuda.get_device_properties(device))


def precision(dtype: torch.dtype) -> str:
    """Return the precision of products of fp32 inputs: `ieee` unless the user allows TF32. For `widened` see `onchip.dot`."""
    if dtype == torch.bfloat16 and interpreting():
        return "widened"
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def rate(dtype: torch.dtype) -> str:
    """Return the key of a dtype in `Sheet.flops`."""
    return "tf32" if precision(dtype) == "tf32" else str(dtype).removeprefix("torch.")


def on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which launches go to the tensor's device instead of the current one."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def rows(value: Tensor) -> Tensor:
    """Return [B, ..., F] as [B, T, F], without a copy where strides allow; T = 1 for [B, F]."""
    if value.dim() == 2:
        return value[:, None]
    return value if value.dim() == 3 else value.reshape(value.shape[0], math.prod(value.shape[1:-1]), value.shape[-1])


def check_dtype(value: Tensor, name: str) -> None:
    """Refuse a tensor whose dtype has no kernels.

    Raises:
        DpbenchError: It is not one of `DTYPES`. The message names the layer or module.
    """
    if value.dtype not in DTYPES:
        raise DpbenchError(f"{name}: no Triton kernel for {value.dtype}", "use kernels: torch")

"""Device sheets, to which a simulated step is compared: data sheets of the makers; dense rates, without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from dpbench.errors import unknown
from dpbench.kernels import sheet
from dpbench.kernels.sheet import Sheet

CONTEXT = 600 * 2**20
"""Bytes that the driver, the context and loaded kernels take before the first tensor: a round number that we chose."""


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        memory: bytes.
        bandwidth: bytes a second of its memory.
        half: FLOP a second of dense matrix products with 16-bit inputs.
        single: FLOP a second of dense matrix products of float32.
        workspace: bytes that cuBLAS reserves through torch's allocator (CUDABlas: 32 MiB on Hopper, 8 MiB and 128 KiB elsewhere).
        bfloat16: whether the hardware multiplies bfloat16.
    """

    name: str
    memory: int
    bandwidth: float
    half: float
    single: float
    workspace: int = 8 * 2**20 + 128 * 2**10
    bfloat16: bool = True

    @property
    def usable(self) -> int:
        """Return the bytes that are left for tensors."""
        return self.memory - CONTEXT - self.workspace


def _rates(kernel_sheet: Sheet) -> tuple[float, float, float]:
    """Return bandwidth, half and single of a sheet that the cost models of the kernels use too."""
    return kernel_sheet.bytes_per_second, kernel_sheet.flops["bfloat16"], kernel_sheet.flops["float32"]


DEVICES = {
    "a100_80": Device("A100 80GB SXM", 80 * 2**30, *_rates(sheet.A100)),
    "h100_80": Device("H100 80GB SXM", 80 * 2**30, *_rates(sheet.H100), workspace=32 * 2**20),
    "a6000_48": Device("RTX A6000", 48 * 2**30, 0.768e12, 154.8e12, 38.7e12),
    "rtx3090_24": Device("RTX 3090", 24 * 2**30, *_rates(sheet.RTX3090)),
    "titan_rtx_24": Device("Titan RTX", 24 * 2**30, 0.672e12, 130.5e12, 16.3e12, bfloat16=False),
}


def device(name: str) -> Device:
    """Return the sheet called `name`.

    Raises:
        DpbenchError: there is no such sheet; the error names the nearest.
    """
    if name not in DEVICES:
        raise unknown("device", name, DEVICES, "dpbench/simulate/devices.py")
    return DEVICES[name]

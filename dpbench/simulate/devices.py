"""Device sheets: what a simulated step is held against. Data sheets of the makers; dense rates, without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from dpbench.errors import unknown
from dpbench.kernels import sheet
from dpbench.kernels.sheet import Sheet

CONTEXT = 600 * 2**20
"""Bytes that the driver, the context and loaded kernels take before the first tensor: ours, a round number."""


@dataclass(frozen=True)
class Device:
    """One GPU.

    memory: bytes; bandwidth: bytes a second of its memory; half, single: FLOP a second of dense matrix products with 16-bit
    inputs and of float32; workspace: bytes cuBLAS keeps for itself through torch's allocator (CUDABlas: 32 MiB on Hopper,
    8 MiB and 128 KiB elsewhere); bfloat16: whether products of it are done in hardware.
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
        """Bytes for tensors."""
        return self.memory - CONTEXT - self.workspace


def _rates(own: Sheet) -> tuple[float, float, float]:
    """Bandwidth, half and single of a sheet that the kernels' cost models use too."""
    return own.bytes_per_second, own.flops["bfloat16"], own.flops["float32"]


DEVICES = {
    "a100_80": Device("A100 80GB SXM", 80 * 2**30, *_rates(sheet.A100)),
    "h100_80": Device("H100 80GB SXM", 80 * 2**30, *_rates(sheet.H100), workspace=32 * 2**20),
    "a6000_48": Device("RTX A6000", 48 * 2**30, 0.768e12, 154.8e12, 38.7e12),
    "rtx3090_24": Device("RTX 3090", 24 * 2**30, *_rates(sheet.RTX3090)),
    "titan_rtx_24": Device("Titan RTX", 24 * 2**30, 0.672e12, 130.5e12, 16.3e12, bfloat16=False),
}


def device(name: str) -> Device:
    """The sheet called `name`.

    Raises:
        DpbenchError: no such sheet; names the nearest.
    """
    if name not in DEVICES:
        raise unknown("device", name, DEVICES, "dpbench/simulate/devices.py")
    return DEVICES[name]

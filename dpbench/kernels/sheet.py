"""Device sheets: the facts about GPUs in the cost models of the kernels, from the vendors' data sheets. No torch import."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Sheet:
    """One GPU.

    sms: The number of streaming multiprocessors. shared: The bytes of shared memory a program may have. shared_sm, registers_sm
    and threads_sm: Limits of one multiprocessor. bytes_per_second: The rate of device memory. flops: FLOP/s by dtype, dense, with
    `float32` without tensor cores.
    """

    name: str
    capability: tuple[int, int]
    sms: int
    shared: int
    shared_sm: int
    threads_sm: int
    bytes_per_second: float
    flops: dict[str, float] = field(hash=False)
    registers_sm: int = 65536

    def residents(self, registers: int, shared: int, warps: int) -> int:
        """Return how many programs of `registers` a thread, `shared` bytes and `warps` one multiprocessor holds at once."""
        a_warp = -(-registers * 32 // 256) * 256  # registers are given out in blocks of 256 a warp
        by_registers = self.registers_sm // max(1, a_warp * warps)
        by_shared = self.shared_sm // (shared + 1024)  # the system keeps 1 KiB a program
        return min(by_registers, by_shared, self.threads_sm // (32 * warps))


KIB = 1024


def _flops(half: float, tf32: float, single: float) -> dict[str, float]:
    return {"bfloat16": half, "float16": half, "tf32": tf32, "float32": single}


H100 = Sheet("H100 SXM", (9, 0), 132, 227 * KIB, 228 * KIB, 2048, 3.35e12, _flops(989e12, 495e12, 67e12))
A100 = Sheet("A100 SXM 80 GB", (8, 0), 108, 163 * KIB, 164 * KIB, 2048, 2.039e12, _flops(312e12, 156e12, 19.5e12))
RTX3090 = Sheet("RTX 3090", (8, 6), 82, 99 * KIB, 100 * KIB, 1536, 0.936e12, _flops(71e12, 35.6e12, 35.6e12))
SHEETS = (H100, A100, RTX3090)


def sheet_of(properties: Any) -> Sheet:
    """Return the sheet of a device from `torch.cuda.get_device_properties`.

    Sizes are those of the device; rates are those of the nearest sheet of its capability, scaled by the number of
    multiprocessors.
    """
    capability = (properties.major, properties.minor)
    older = [sheet for sheet in SHEETS if sheet.capability <= capability]
    nearest = max(older or [A100], key=lambda sheet: sheet.capability)
    share = properties.multi_processor_count / nearest.sms
    return replace(
        nearest,
        name=properties.name,
        capability=capability,
        sms=properties.multi_processor_count,
        shared=getattr(properties, "shared_memory_per_block_optin", nearest.shared),
        shared_sm=getattr(properties, "shared_memory_per_multiprocessor", nearest.shared_sm),
        threads_sm=getattr(properties, "max_threads_per_multi_processor", nearest.threads_sm),
        registers_sm=getattr(properties, "regs_per_multiprocessor", nearest.registers_sm),
        bytes_per_second=nearest.bytes_per_second * share,
        flops={name: rate * share for name, rate in nearest.flops.items()},
    )

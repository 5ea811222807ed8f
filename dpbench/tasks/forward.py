"""How a task's forward pass runs: its precision, and which kernel its attention takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return what makes products bfloat16 where `precision` says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def attention(device: torch.device, functional: bool = False) -> Iterator[None]:
    """Use plain products for attention on the CPU, where the fused kernel is slow on short texts.

    Args:
        functional: whether torch.func traces the losses, for which the fused kernel has no rule.
    """
    if device.type == "cpu" or functional:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield

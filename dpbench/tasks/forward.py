"""A task's forward pass: padded batches, its precision, and the kernel of its attention."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence


def padded(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Return rows of token ids as one tensor [B, T], filled up with `value` to the longest."""
    return pad_sequence([torch.as_tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return what makes products bfloat16 where `precision` says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def attention(device: torch.device, functional: bool = False) -> AbstractContextManager[None]:
    """Return what uses plain products for attention on the CPU, where the fused kernel is slow on short texts.

    Args:
        functional: whether torch.func traces the losses, for which the fused kernel has no rule.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" or functional else nullcontext()

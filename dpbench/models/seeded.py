"""Building a module with random weights that depend on a seed alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

M = TypeVar("M", bound=torch.nn.Module)


def build(make: Callable[[], M], seed: int, meta: bool) -> M:
    """`make()` on the CPU with torch's generator at `seed`, which is put back after; or on the meta device, without storage."""
    if meta:
        with torch.device("meta"):
            return make()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that reseeds accelerators too
        return make()

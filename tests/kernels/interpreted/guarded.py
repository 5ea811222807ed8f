"""Tensors with guard cells, and kernels with a planted fault."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SENTINEL = 7.0
ROOM = 40  # guard rows and columns on each side: more than a tile, so that even a faulty kernel stays inside


def amid(value: torch.Tensor, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(a view equal to `value`, the larger tensor it lies in): guards before, behind and between its rows."""
    shape = [size + 2 * ROOM for size in value.shape]
    padded = torch.full(shape, fill, dtype=value.dtype)
    view = padded[tuple(slice(ROOM, ROOM + size) for size in value.shape)]
    view.copy_(value)
    return view, padded


def guards_hold(view: torch.Tensor, padded: torch.Tensor) -> bool:
    """Whether every cell of `padded` outside of `view` is as it was."""
    kept = view.clone()
    view.fill_(SENTINEL)
    held = bool((padded == SENTINEL).all())
    view.copy_(kept)
    return held


def with_fault(path: str, *changes: tuple[str, str], folder: Path):
    """The module of a kernel file with parts of its text replaced; each part must be there."""
    text = Path(path).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file = folder / "faulty.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("faulty", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Peak bytes of live tensor storage: exact and repeatable, on real or fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakBytes(TorchDispatchMode):
    """Counts storages born inside the block.

    Args:
        quantum: each storage counts as the next multiple of it; 512 is what the CUDA allocator does, 1 the plain size.
    """

    def __init__(self, quantum: int = 1) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.quantum = quantum
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(tree_iter(out))
        return out

    def count(self, values: Iterable[Any]) -> None:
        """Count the tensors among `values` that are new: also those born before the block."""
        for value in values:
            if isinstance(value, Tensor):
                self._born(value.untyped_storage())

    def reset_peak(self) -> None:
        """Forget the past peak, keep what is live."""
        self.peak = self.live

    def _born(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = -(-storage.nbytes() // self.quantum) * self.quantum
        self._seen[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.live -= size

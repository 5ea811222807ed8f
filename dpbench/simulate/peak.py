"""Peak bytes of live tensor storage: exact and repeatable, on real or fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from torch._ops import OpOverload


class PeakBytes(TorchDispatchMode):
    """Count storages that are created inside the block.

    Args:
        quantum: each storage is rounded up to a multiple of it: 512 like in the CUDA allocator, 1 for the exact size.
    """

    def __init__(self, quantum: int = 1) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.quantum = quantum
        self._seen: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()
        self._resized: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(tree_iter(out))
        if self._resized:
            self.peak = max(self.peak, self._now())
        return out

    def count(self, values: Iterable[Any]) -> None:
        """Count the new tensors among `values`, also those that were created before the block."""
        for value in values:
            if isinstance(value, Tensor):
                self._born(getattr(value, "_local_tensor", value).untyped_storage())  # a DTensor has no storage

    def reset_peak(self) -> None:
        """Forget the past peak and keep what is live.

        A storage whose length has changed since it was created, such as the gathered weights of a sharded model, is asked for its
        length after every operation from here on.
        """
        for storage, size in list(self._seen.items()):
            if size[0] and self._rounded(storage) != size[0]:
                self.live -= size[0]
                size[0] = 0
                self._resized.add(storage)
        self.peak = self._now()

    def _now(self) -> int:
        return self.live + sum(self._rounded(storage) for storage in self._resized)

    def _rounded(self, storage: Any) -> int:
        return -(-storage.nbytes() // self.quantum) * self.quantum

    def _born(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = [self._rounded(storage)]
        self._seen[storage] = size
        self.live += size[0]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: list[int]) -> None:
        self.live -= size[0]

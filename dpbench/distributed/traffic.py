"""The bytes that a process sends to the others of its group, counted in torch's dispatcher, through which all of them pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from torch._ops import OpOverload

_NAMESPACES = ("c10d", "_c10d_functional")
_TAKES = ("recv_", "recv_any_source_", "wait_tensor")
_INPUT = {"allgather_": 1, "_allgather_base_": 1, "reduce_scatter_": 1, "_reduce_scatter_base_": 1, "gather_": 1, "scatter_": 1}
_INPUT |= {"alltoall_": 1, "alltoall_base_": 1}


class Traffic(TorchDispatchMode):
    """A context that counts bytes inside its block.

    phase: The name of the current phase, set by the caller. messages: The bytes sent to one rank, by phase. collectives: The
    bytes of the tensors passed to operations of the group, by phase, whatever those send in turn.
    """

    def __init__(self, phase: str = "") -> None:
        super().__init__()
        self.phase = phase
        self.messages: Counter[str] = Counter()
        self.collectives: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.split("::")[1]
        if func.namespace in _NAMESPACES and name not in _TAKES:
            to = self.messages if name == "send" else self.collectives
            inputs = args[_INPUT[name]] if name in _INPUT else (args, kwargs)  # of an unknown operation all arguments count
            to[self.phase] += sum(x.nbytes for x in tree_iter(inputs) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))

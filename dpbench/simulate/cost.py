"""The cost of a step, operation by operation: peak bytes, FLOPs and bytes moved, on tensors without values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from dpbench.simulate.peak import PeakBytes

if TYPE_CHECKING:
    from torch._ops import OpOverload, OpOverloadPacket

aten = torch.ops.aten

_FREE = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.detach}
_WRITE_ONLY = {aten.zero_, aten.fill_, aten.normal_, aten.zeros, aten.ones, aten.full, aten.arange}
_GATHER = {aten.embedding, aten.index, aten.index_select, aten.gather}  # these read what they return, not the entire table
_ONE = {torch.bool: True}
_IN_PLACE = {aten.addmm_: aten.addmm, aten.baddbmm_: aten.baddbmm}


@dataclass
class Work:
    """FLOPs and bytes of each operation of a step, and whether its inputs have 16 bits."""

    flops: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    half: list[bool] = field(default_factory=list)

    def add(self, flops: float, moved: float, half: bool) -> None:
        self.flops.append(flops)
        self.bytes.append(moved)
        self.half.append(half)

    def seconds(self, bandwidth: float, half: float, single: float) -> float:
        """Return the roofline time: operations run one after another, each limited by its slower side; launches are free."""
        rates = (half if h else single for h in self.half)
        return math.fsum(max(f / r, b / bandwidth) for f, b, r in zip(self.flops, self.bytes, rates, strict=True))


class Cost(PeakBytes):
    """Count work in addition to storage, and substitute values that do not exist.

    A tensor without storage has no values. A condition counts as true, so that engines take the usual branch (every example is
    finite), a number as 1, and the result of a search has its largest size (all tokens of an example differ).
    """

    def __init__(self, quantum: int = 1) -> None:
        super().__init__(quantum)
        self.work = Work()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if torch.is_inference_mode_enabled() and func._can_decompose():  # elsewhere autograd has decomposed it before
            with self:
                return func.decompose(*args, **kwargs)
        if packet is aten._local_scalar_dense:
            return _ONE.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        if packet is aten._to_copy and args[0].is_meta and str(kwargs.get("device")) == "cpu":  # a number for the host
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if packet is aten.equal:  # engines ask whether a tensor is unchanged
            return False
        if packet is aten.index:
            args = (args[0], _all_chosen(args[1]))
        out = _largest(packet, args) if packet in (aten.nonzero, aten.unique_dim) else func(*args, **kwargs)
        self.count(tree_iter(out))
        self._note(func, args, kwargs, out)
        return out

    def _note(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> None:
        packet = func._overloadpacket
        if packet in _FREE or func.is_view:
            return
        inputs = {id(v): v for v in tree_iter((args, kwargs)) if isinstance(v, Tensor)}
        outputs = [v for v in tree_iter(out) if isinstance(v, Tensor)]
        if not outputs and packet.__name__.startswith("_foreach"):  # in place on a list
            outputs = args[0]
        output_ids = {id(v) for v in outputs}
        outputs += [v for v in _mutated(func, args) if id(v) not in output_ids]
        written = sum(map(_bytes, outputs))
        read = sum(map(_bytes, inputs.values()))
        if packet in _WRITE_ONLY:
            read = 0
        elif packet is aten.copy_:
            read = _bytes(args[1])
        elif packet in _GATHER:
            read = written
        formula = flop_registry.get(_IN_PLACE.get(packet, packet))
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        half = any(v.dtype in (torch.bfloat16, torch.float16) for v in inputs.values())
        self.work.add(flops, read + written, half)


def _mutated(func: OpOverload, args: tuple[Any, ...]) -> list[Tensor]:
    """Return the arguments that an operation writes to."""
    declared = zip(func._schema.arguments, args, strict=False)
    return [v for a, v in declared if a.alias_info is not None and a.alias_info.is_write and isinstance(v, Tensor)]


def _bytes(value: object) -> int:
    """Return the bytes that an operation reads or writes of a tensor; an expanded one is not larger than its storage."""
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes()) if isinstance(value, Tensor) else 0


def _all_chosen(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Replace every mask among the indices by positions, as if all of it were true."""
    out: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            out += [torch.zeros(index.numel(), dtype=torch.long, device=index.device)] * index.dim()
        else:
            out.append(index)
    return out


def _largest(packet: OpOverloadPacket, args: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    value = args[0]
    if packet is aten.nonzero:
        return torch.empty(value.numel(), value.dim(), dtype=torch.long, device=value.device)
    index = torch.empty(value.shape[0], dtype=torch.long, device=value.device)
    return torch.empty_like(value), index, torch.empty_like(index)

"""Data parallel training: every rank has the full model and a share of the logical batch.

Each rank sums the bounded gradients of its share and adds noise to its part of the elements, and then the sums are added up.

Sensitivity: an example is in one rank's share, so the sum over ranks is the sum over the logical batch, and adding or
removing one example moves it by at most hypot(C_1..C_K), as in one process. The parts do not overlap and cover every
element, so the sum carries exactly one draw of the mechanism's noise. Each part has a separate stream; under
`randomness: secret` its key never leaves its rank. The ranks trust each other: the guarantee is about what they release.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpbench.distributed.group import Group, Grouped
from dpbench.errors import DpbenchError
from dpbench.methods.engines.attached import Attached
from dpbench.methods.engines.exchange import Tally
from dpbench.privacy.noise import in_memory_order

BUCKET = 25 << 20
"""The bytes of small sums that are collected before they are sent, as in torch's DistributedDataParallel."""

LARGE = 4 << 20
"""The bytes from which a sum is sent without a copy, which would cost more than it saves."""


class Replicas(Grouped):
    """Sums over the ranks of a group, each with one share of one draw of noise."""

    def total(self, tally: Tally, steps: int, fault: DpbenchError | None) -> Tally:
        return self.group.total(tally, fault, steps=steps)

    def release_(self, handle: Attached, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Replace each (sum, std) by (sum over all ranks + N(0, std^2)) / divisor, in place, with the same bits on every rank.

        Guarantee: every element gets one draw of noise of std `std` over the group.
        """
        waiting = []
        # A bucket is sent while the next one gets its noise.
        for bucket in _buckets([(_writable(total), std) for total, std in sums]):
            self._noise_local_part(handle, bucket, divisor)
            waiting.append(_Sent([values for values, _ in bucket], self.group))
        for sent in waiting:
            sent.receive()

    def _noise_local_part(self, handle: Attached, bucket: list[tuple[Tensor, float]], divisor: float) -> None:
        """Add noise to this rank's part of each tensor, and divide all parts."""
        noised, others = [], []
        for values, std in bucket:
            first, last = share_of(len(values), self.group.rank, self.group.size)
            noised.append((values[first:last], std))
            others += [part for part in (values[:first], values[last:]) if len(part)]
        handle.noise.release_([(part, std) for part, std in noised if len(part)], divisor)
        if others:
            torch._foreach_mul_(others, 1 / divisor)


def share_of(elements: int, rank: int, size: int) -> tuple[int, int]:
    """Return [first, last) of a rank's elements. The shares cover all elements once, and their lengths differ by one at most."""
    return elements * rank // size, elements * (rank + 1) // size


def broadcast(model: nn.Module, group: Group) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            values = tensor.detach().contiguous()
            dist.broadcast(values, src=group.first, group=group.process_group)
            tensor.copy_(values)


class _Sent:
    """Sums that are being added over the ranks: a single one in place, several in one copy."""

    def __init__(self, sums: list[Tensor], group: Group) -> None:
        self._sums = sums
        self._flat = sums[0] if len(sums) == 1 else torch.cat(sums)
        self._work = dist.all_reduce(self._flat, group=group.process_group, async_op=True)

    def receive(self) -> None:
        self._work.wait()
        if len(self._sums) > 1:
            torch._foreach_copy_(self._sums, list(self._flat.split([len(s) for s in self._sums])))


def _buckets(sums: list[tuple[Tensor, float]]) -> Iterator[list[tuple[Tensor, float]]]:
    """Yield all sums in buckets of one dtype and device, in an order that depends on their shapes alone."""
    waiting: list[tuple[Tensor, float]] = []
    size = 0
    for total, std in sums:
        if total.nbytes >= LARGE:
            yield [(total, std)]
            continue
        if waiting and (
            size + total.nbytes > BUCKET or (total.dtype, total.device) != (waiting[0][0].dtype, waiting[0][0].device)
        ):
            yield waiting
            waiting, size = [], 0
        waiting.append((total, std))
        size += total.nbytes
    if waiting:
        yield waiting


def _writable(total: Tensor) -> Tensor:
    flat = in_memory_order(total).reshape(-1)
    assert flat.data_ptr() == total.data_ptr(), "a sum is dense: the engine allocated it"
    return flat

"""The processes that train one model together, and the facts that they must agree on before anything is released."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from dpbench.errors import DpbenchError
from dpbench.files import canonical_json
from dpbench.methods.engines.exchange import Exchange, Tally
from dpbench.privacy.mechanism import Mechanism

if TYPE_CHECKING:
    from dpbench.methods.engines.attached import Attached


class Group:
    """A process group; None is the group of all processes.

    rank is this process' number in the group, size the number of its processes, first the global number of its rank 0, and device
    the one on which its collectives need their tensors.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise DpbenchError("there is no process group", "call torch.distributed.init_process_group, or start with torchrun")
        self.process_group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.first = 0 if group is None else dist.get_global_rank(group, 0)
        cuda = "nccl" in dist.get_backend(group)
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")

    def gathered(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in the order of ranks."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value."""
        box = [value]
        dist.broadcast_object_list(box, src=self.first, group=self.process_group)
        return box[0]

    def largest(self, value: int) -> int:
        """Return the largest value of all ranks."""
        maximum = torch.tensor(value, device=self.device)
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.process_group)
        return int(maximum)

    def added(self, values: list[float]) -> list[float]:
        """Return the sums of all ranks' values, in fp64, with the same bits on every rank."""
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals, group=self.process_group)
        sums: list[float] = totals.tolist()
        return sums

    def agree(self, **facts: Any) -> None:
        """See that every rank has the same facts.

        Raises:
            DpbenchError: On all ranks. The message names the first fact that differs and the first rank that differs from rank 0.
        """
        digests = {name: hashlib.sha256(canonical_json(value).encode()).hexdigest() for name, value in facts.items()}
        for rank, theirs in enumerate(all_ranks := self.gathered(digests)):
            for name, digest in all_ranks[0].items():
                if theirs.get(name) != digest:
                    raise DpbenchError(
                        f"rank {rank} has another {name.replace('_', ' ')} than rank 0", "build the same on every process"
                    )

    def total(self, tally: Tally, fault: DpbenchError | None, **alike: int) -> Tally:
        """Return the sum of all tallies.

        Args:
            alike: Numbers that must be the same on all ranks.

        Raises:
            DpbenchError: On all ranks: one of them has a fault, or one of these numbers differs.
        """
        squares = [value * value for value in alike.values()]
        numbers = [
            tally.examples,
            tally.clipped,
            tally.non_finite,
            tally.finite,
            int(fault is not None),
            *alike.values(),
            *squares,
        ]
        sums = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.all_reduce(sums, group=self.process_group)
        counts, faults, alike_sums = sums[:4].tolist(), int(sums[4]), sums[5:].tolist()
        if fault is not None:
            raise fault
        if faults:
            raise DpbenchError(f"{faults} of {self.size} ranks stopped before the step", "see their errors")
        for name, total, square in zip(alike, alike_sums, alike_sums[len(alike) :], strict=False):
            if self.size * square != total * total:  # the variance is 0 only if all are equal
                raise DpbenchError(f"the ranks do not have the same number of {name}", "run the same loop on every rank")
        return Tally(*counts)


class Grouped(Exchange):
    """The exchange of one process with the others of its group."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def release_counts(self, handle: Attached, counts: list[float], std: float) -> list[float]:
        """Return (counts of all ranks) + N(0, std^2), the same on all of them.

        Guarantee: one draw of noise over the group: rank 0 adds it to its counts before they are summed.
        """
        return self.group.added(handle.noise.on_counts(counts, std) if self.group.rank == 0 else counts)


def facts_of(model: nn.Module, optimizer: torch.optim.Optimizer, mechanism: Mechanism, engine: str) -> dict[str, Any]:
    """Return the facts that replicas and shards must have in common."""
    parameters = [[name, list(p.shape), str(p.dtype), p.requires_grad] for name, p in model.named_parameters()]
    return {"parameter_list": parameters, **facts_of_training(optimizer, mechanism, engine)}


def facts_of_training(optimizer: torch.optim.Optimizer, mechanism: Mechanism, engine: str) -> dict[str, Any]:
    """Return the facts that all processes of a group must have in common, whatever part of the model they hold."""
    settings = [{k: repr(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {"mechanism": mechanism.describe(), "optimizer": [type(optimizer).__name__, settings], "engine": engine}

"""Pipeline parallel training with clipping by groups of layers: every rank has one stage of the model and sees every example.

A group inside one stage is clipped by a norm that the stage knows, so stages exchange activations and their gradients as in plain
training, and no norm. Flat clipping has one group over all stages: each keeps its output gradients until the schedule has gone
through all micro-batches, the squared norms are added up, and only then are the gradients clipped. The number of groups, the
bounds and the noise are those of the full model and are exchanged once, when the engine is attached. With adaptive thresholds the
counts of all groups are exchanged once a step.

Sensitivity: the groups are disjoint, and an example adds at most C_k to each, hypot(C_1..C_K) over the model.
Each stage adds noise to its parameters with the std for the full model, from a separate stream, so the stages together release
the mechanism once. Cutting a batch into micro-batches changes nothing, as losses are summed and never averaged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from dpbench.distributed.group import Group, Grouped
from dpbench.errors import DpbenchError
from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.batches import Batch, Losses, batch_size, select, without_padding
from dpbench.methods.engines.exchange import Tally
from dpbench.methods.engines.layers import Layout

Schedule = Literal["gpipe", "1f1b"]
Inputs = Callable[[Any], Sequence[Tensor]]
"""Maps a batch to the inputs of the first stage."""

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class Stages(Grouped):
    """The exchange between stages.

    Of a release only the counts of adaptive thresholds are exchanged. Of examples it is whether they were clipped or non-finite,
    and their norms if one group spans all stages.
    """

    keeps_padding = True

    def __init__(self, group: Group, norms_wait: bool = False) -> None:
        super().__init__(group)
        self.norms_wait = norms_wait
        self._flags: list[Tensor] = []

    def record_examples(self, over: Tensor, finite: Tensor) -> None:
        self._flags.append(torch.stack([over, ~finite]))

    def global_norms(self, squared: list[dict[int, Tensor]]) -> list[dict[int, Tensor]]:
        """Return the squared norms of the one group over all stages, by one exchange, with the same bits on every rank."""
        parts = [groups[0] for groups in squared]
        total = torch.cat(parts).to(self.group.device)
        dist.all_reduce(total, group=self.group.process_group)
        return [{0: part} for part in total.to(parts[0].device).split([len(part) for part in parts])]

    def total(self, tally: Tally, steps: int, fault: DpbenchError | None) -> Tally:
        together = self.group.total(tally, fault, steps=steps, examples=tally.examples)
        noted, self._flags = self._flags, []
        if not together.clipped + together.non_finite:
            return Tally(tally.examples, 0, 0, tally.finite)
        flags = torch.cat(noted, 1).to(self.group.device, torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group.process_group)
        clipped, non_finite = (int(n) for n in flags.sum(1, dtype=torch.int64))
        return Tally(tally.examples, clipped, non_finite, flags.shape[1] - non_finite)


def global_layout(local_layout: Layout, parameters: list[str], group: Group, one_group: bool = False) -> Layout:
    """Return the layout of this stage's clusters among the groups of all stages.

    Args:
        one_group: Whether the layers of all stages are one group.

    Raises:
        DpbenchError: A parameter's name is in two stages.
    """
    everyone = group.gathered((local_layout.groups, local_layout.sizes, local_layout.shared, parameters))
    seen: dict[str, int] = {}
    for rank, (_, _, _, names) in enumerate(everyone):
        for name in names:
            if name in seen:
                raise DpbenchError(
                    f"parameter {name} is in the stages of rank {seen[name]} and rank {rank}", "give every tensor to one stage"
                )
            seen[name] = rank
    if one_group:
        names = [name for groups, _, _, _ in everyone for together in groups for name in together]
        return Layout(local_layout.clusters, [names], [sum(sum(sizes) for _, sizes, _, _ in everyone)])
    layout = Layout(local_layout.clusters, [], [], [])
    for rank, (groups, sizes, shared, _) in enumerate(everyone):
        offset = len(layout.groups)
        if rank == group.rank:
            for cluster in local_layout.clusters:
                cluster.group += offset
        layout.groups += groups
        layout.sizes += sizes
        layout.shared += [[k + offset for k in together] for together in shared]
    return layout


class BoundedStage(PipelineStage):
    """A stage whose forward and backward passes are an engine's."""

    def __init__(self, handle: Handle, group: Group) -> None:
        device = next(handle.model.parameters()).device
        super().__init__(handle.model, group.rank, group.size, device, group=group.process_group)
        self._handle = handle
        self._passes: dict[int, Any] = {}
        self._chunk = 0
        self.real: list[int] = []
        self.done = 0

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self._chunk = fwd_chunk_id
        return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self._chunk = bwd_chunk_id
        return super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def forward_maybe_with_nosync(self, *args: Any, **kwargs: Any) -> Any:
        self._passes[self._chunk], output = self._handle.forward_of(lambda: self.submod(*args, **kwargs))
        return output

    def backward_maybe_with_nosync(self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False) -> Any:
        if backward_type != "full":
            raise DpbenchError(f"a schedule that runs {backward_type!r} passes separately", "use gpipe or 1f1b")
        self._handle.real = self.real[self._chunk]
        values = bwd_kwargs["input_values"]
        inputs = [v for v in values if isinstance(v, Tensor) and v.requires_grad]
        output, gradients = _only(bwd_kwargs["stage_output"]), _only(bwd_kwargs["output_grads"])
        input_gradients = iter(self._handle.backward_of(self._passes.pop(self._chunk), output, gradients, inputs))
        self.done += 1
        return tuple(next(input_gradients) if isinstance(v, Tensor) and v.requires_grad else None for v in values), None


def _only(value: Any) -> Any:
    if isinstance(value, tuple | list):
        if len(value) != 1:
            raise DpbenchError(f"a stage with {len(value)} outputs", "return one tensor from every stage")
        return value[0]
    return value


class Pipeline:
    """An engine on one stage of a pipeline. `handle` is that of the stage; its epsilon and counts are those of the full model."""

    def __init__(self, handle: Handle, group: Group, schedule: Schedule, micro_batches: int, inputs: Inputs) -> None:
        self.handle, self.micro_batches = handle, micro_batches
        self._inputs = inputs
        self._stage = BoundedStage(handle, group)
        self._schedule = SCHEDULES[schedule](self._stage, micro_batches, loss_fn=self._loss, scale_grads=False)
        # Before torch 2.10 the last stage keeps its outputs, and `step` passes options that it does not know to the model.
        known = "return_outputs" in inspect.signature(self._schedule.step).parameters
        self._options: dict[str, Any] = {"return_outputs": False} if known else {}
        self._losses: Losses | None = None
        self._shape: list[torch.Size] | None = None
        self._pieces: list[Any] = []
        self._values: dict[int, Tensor] = {}

    def backward(self, losses: Losses, batch: Batch, real: int | None = None) -> Tensor:
        """Add the bounded gradients of one physical batch to the step's sum, on all ranks together.

        Args:
            losses: losses(model, batch) -> [B]; `model` represents all stages, and is called once.
            batch: The same on every rank, of the same size in every call, a multiple of `micro_batches`.
            real: Only the first `real` examples count; the others are padding.

        Returns:
            The detached losses [B] on the last rank, none elsewhere.

        Raises:
            DpbenchError: The batch cannot be cut.
        """
        size, shape = batch_size(batch), [x.shape for x in self._inputs(batch)]
        if self._shape not in (None, shape):
            raise DpbenchError(f"a batch of shape {shape} after one of {self._shape}", "pad every batch to one shape")
        self._shape = shape
        if size % self.micro_batches:
            raise DpbenchError(
                f"a batch of {size} examples in {self.micro_batches} micro-batches", "pad it, and say how many are `real`"
            )
        each, counted = size // self.micro_batches, size if real is None else real
        starts = range(0, size, each)
        self._stage.real = [min(max(counted - start, 0), each) for start in starts]
        self._pieces = [select(batch, slice(start, start + each)) for start in starts]
        self._losses, self._values, self._stage.done = losses, {}, 0
        stage_inputs = self._inputs(batch) if self._stage.is_first else ()
        target = torch.arange(self.micro_batches) if self._stage.is_last else None  # cut like a batch: the piece's number
        self._schedule.step(*stage_inputs, target=target, **self._options)
        self.handle.flush_deferred()
        if self._stage.done != self.micro_batches:
            raise DpbenchError(
                f"{self._stage.done} of {self.micro_batches} micro-batches went back through the engine",
                f"torch {torch.__version__} runs pipelines another way: use a version between 2.8 and 2.13",
            )
        parts = [self._values[number] for number in sorted(self._values)]
        values = torch.cat(parts)[:counted] if parts else torch.zeros(0)
        self.handle.record_examples(values, counted)
        return values

    def _loss(self, output: Tensor, number: Tensor) -> Tensor:
        assert self._losses is not None
        piece = int(number[0])
        losses = without_padding(self._losses, self._stage.real[piece])
        values = losses(_KnownOutput(self.handle.model, output), self._pieces[piece])  # type: ignore[arg-type]
        self._values[piece] = values.detach()
        return values.sum()

    def detach(self) -> None:
        """Remove every trace from the stage's module and optimizer."""
        self.handle.detach()


class _KnownOutput:
    """A substitute for the model that returns an output computed before."""

    def __init__(self, model: nn.Module, output: Tensor) -> None:
        self._model, self._output = model, output

    def __call__(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def input_ids(batch: Batch) -> Sequence[Tensor]:
    """Return the inputs of the first stage from a language model's batch."""
    return (batch["input_ids"],)

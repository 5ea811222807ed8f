"""One process of the job `parallel`: `python -m dpbench.measure.ranks`, started by `dpbench.distributed.launch`."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from dpbench.distributed.launch import say
from dpbench.distributed.worker import serve
from dpbench.measure.config import ParallelSettings as Settings
from dpbench.measure.memory import STEPS, Peaks, peak_meter, process_peak
from dpbench.measure.rounds import turns, wait_for

if TYPE_CHECKING:
    from torch import nn

    from dpbench.models.wrappers import LanguageModel


def main() -> None:
    serve(measure)


def measure(request: dict[str, Any], rank: int) -> None:
    """Measure the memory of every engine, then the rounds, and send the results."""
    settings = Settings(**request["settings"])
    for engine in request["engines"]:
        say({"engine": engine, "peaks": memory(settings, request, rank, engine)})
    rounds(settings, request, rank)


def memory(settings: Settings, request: dict[str, Any], rank: int, engine: str) -> Peaks:
    """Return the peak bytes of this rank in each of a few steps, after one that allocates the optimizer's state.

    All tensors are new. `tensors` counts live tensors, on a GPU by its allocator. `process` is the reserved memory on a GPU, and
    0 on a CPU, where the process has measured other engines before.
    """
    gc.collect()
    with peak_meter(settings.device) as peak_of:
        attached = Bench(settings, request, rank).attach(engine)
        attached.step()
        peaks = [peak_of(attached.step) for _ in range(STEPS)]
        attached.detach()
    return {"tensors": peaks, "process": process_peak("cuda") if settings.device == "cuda" else 0.0}


def rounds(settings: Settings, request: dict[str, Any], rank: int) -> None:
    """Time a step of every engine in every round, in turn."""
    from dpbench.measure.throughput import keep_freed_memory
    from dpbench.privacy import gaussian

    cuda = settings.device == "cuda"
    facts = {
        "noise_is_compiled": not cuda and gaussian.compiled() is not None,
        "freed_memory_is_kept": True if cuda else keep_freed_memory(),
        "threads_of_a_process": request["threads"],
    }
    if rank == 0:
        say(facts)
    gc.collect()
    bench = Bench(settings, request, rank)
    for _, engines in turns(request["engines"], range(settings.rounds)):
        for engine in engines:
            seconds = bench.timed(engine)
            if rank == 0:
                say({"engine": engine, "seconds": seconds})


def whole_model(settings: Settings, meta: bool = False) -> LanguageModel:
    """Build the language model with its parameters on the meta device, and with `meta` also its buffers."""
    import torch

    from dpbench.models.registry import language_model, language_model_size
    from dpbench.models.seeded import parameters_on_meta

    dtype = getattr(torch, settings.dtype)
    context = max(settings.tokens, language_model_size(settings.size)["context"])
    with nullcontext() if meta else parameters_on_meta():
        return language_model(settings.size, dtype=dtype, meta=meta, context=context)


def parts_of(settings: Settings, model: LanguageModel) -> list[nn.Module]:
    """Return the modules of the ranks: the stages of a pipeline, or the model itself."""
    from dpbench.models.stages import stage_of

    if not settings.pipeline:
        return [model]
    return [stage_of(model, number, settings.processes) for number in range(settings.processes)]


class Bench:
    """This rank's part of the model, an optimizer and its batches, on which engines are attached one after another."""

    def __init__(self, settings: Settings, request: dict[str, Any], rank: int) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        from dpbench.models.registry import language_model_losses
        from dpbench.models.seeded import materialise
        from dpbench.models.stages import blocks_of

        self.settings, self.losses = settings, language_model_losses
        self.device = torch.device("cuda", torch.cuda.current_device()) if settings.device == "cuda" else torch.device("cpu")
        model = whole_model(settings)
        if settings.mode == "fsdp":
            mesh = init_device_mesh(settings.device, (settings.processes,))
            for block in blocks_of(model):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        parts = parts_of(settings, model)
        self.model = parts[rank] if settings.pipeline else model
        # Replicas must be equal; shards and stages are parts of one model.
        materialise(self.model, self.device, request["seed"] if settings.mode == "ddp" else 1000 * request["seed"] + rank)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)
        ids = torch.as_tensor(request["ids"]).to(self.device)
        ids_of_rank = ids if settings.pipeline else ids[rank :: settings.processes]
        self.batches = [
            {"input_ids": part} for part in ([ids_of_rank] if settings.pipeline else ids_of_rank.split(settings.physical))
        ]

    def attach(self, engine: str) -> Attached:
        """Attach an engine and return it, ready to step. `nonprivate` is torch's implementation, with its overlap."""
        from dpbench import distributed as parallel

        plan = self.settings.mechanism(engine)
        if self.settings.pipeline:
            count = self.settings.share // self.settings.physical
            return Attached(
                self,
                parallel.attach_stage(engine, self.model, self.optimizer, plan, count, self.settings.mode),  # type: ignore[arg-type]
            )
        if engine == "nonprivate" and self.settings.mode == "ddp":
            return TorchReplicas(self)
        return Attached(self, parallel.attach(engine, self.model, self.optimizer, plan))

    def timed(self, engine: str) -> float:
        """Return the seconds of a step of the entire group, without attaching and warm-up."""
        attached = self.attach(engine)
        try:
            return self.settings.seconds_per_step(attached.step, self._all_here)
        finally:
            attached.detach()

    def _all_here(self) -> None:
        import torch.distributed as dist

        wait_for(self.device.type)
        dist.barrier()


class Attached:
    """One of our engines on this rank."""

    def __init__(self, bench: Bench, handle: Any) -> None:
        self.bench, self._handle = bench, handle

    def step(self) -> None:
        """Take one logical step of one or more physical batches."""
        for batch in self.bench.batches:
            self._handle.backward(self.bench.losses, batch)
        self.bench.optimizer.step()
        self.bench.optimizer.zero_grad()

    def detach(self) -> None:
        self._handle.detach()


class TorchReplicas(Attached):
    """torch's DistributedDataParallel, which sends gradients during the backward pass."""

    def __init__(self, bench: Bench) -> None:
        from torch.nn.parallel import DistributedDataParallel

        super().__init__(bench, None)
        self._wrapped: Any = DistributedDataParallel(bench.model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def step(self) -> None:
        """Take a step as in `Attached.step`: gradients become the sum over the group's examples / B."""
        scale = self.bench.settings.processes / self.bench.settings.batch_size  # torch averages over ranks
        last = len(self.bench.batches) - 1
        for number, batch in enumerate(self.bench.batches):
            with nullcontext() if number == last else self._wrapped.no_sync():
                (self.bench.losses(self._wrapped, batch).sum() * scale).backward()
        self.bench.optimizer.step()
        self.bench.optimizer.zero_grad()

    def detach(self) -> None:
        self._wrapped = None  # its hooks go with it
        gc.collect()


if __name__ == "__main__":
    main()

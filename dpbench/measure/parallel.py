"""Memory and throughput of training steps on several processes: data parallel or a pipeline, engines in turn in one launch.

The job starts its processes itself, one for each GPU or several on a CPU, like `torchrun --standalone`.
"""

from __future__ import annotations

import math
from typing import Any

from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, Outcome
from dpbench.execution.environment import require_device
from dpbench.measure.config import WAYS
from dpbench.measure.config import ParallelSettings as Settings
from dpbench.measure.memory import Peaks, out_of_memory
from dpbench.measure.rounds import split_missing, unmeasured
from dpbench.measure.throughput import UNITS, batch_ids, metrics_of
from dpbench.models.language import language_model_size
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source

WORKER = "dpbench.measure.ranks"
PATIENCE = 300.0
"""Seconds that a collective may take; a group that is silent for twice as long counts as hung."""


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions and sources that determine the numbers."""
    return settings.uses()


def run(settings: Settings, context: Context) -> Outcome:
    """Measure the memory of every engine, then timed rounds, A B C B C A ..., all in one launch of the processes.

    Raises:
        DpbenchError: there are fewer GPUs than processes, an engine does not run in this mode, a process failed or hangs, or no
            engine could be measured.
    """
    require_devices(settings)
    runnable, reasons = _runnable(settings)
    ids, facts = batch_ids(settings, context.sources[f"dataset:{settings.dataset}"])
    request = {
        "settings": settings.model_dump(),
        "ids": ids.tolist(),
        "seed": context.seed,
        "device": settings.device,
        "threads": max(context.threads // settings.processes, 1),
        "patience": PATIENCE,
    }
    results: _Results | None = None
    while runnable and results is None:
        results = _Results(runnable, settings.rounds, context)
        try:
            results.launch(request, settings.processes)
        except DpbenchError as error:
            if not getattr(error, "out_of_memory", False) or (engine := results.engine_of_memory) is None:
                raise
            runnable.remove(engine)  # the others start again in new processes, without its memory
            reasons[engine] = out_of_memory(settings, error.what)
            results = None
    metrics = [m for engine, why in reasons.items() for m in unmeasured(UNITS, {"engine": engine}, why)]
    if results is not None:
        for engine in runnable:
            metrics += metrics_of(settings, engine, results.rounds, results.memory)
        facts |= results.facts
    facts["mechanisms"] = {engine: settings.mechanism(engine).describe() for engine in runnable}
    return Outcome(metrics, facts=facts, device=settings.device)


class _Results:
    """Results of one launch so far; `memory` holds the peaks of the rank that needs the most, step by step."""

    def __init__(self, engines: list[str], rounds: int, context: Context) -> None:
        self.engines, self._context = list(engines), context
        self._total, self._done = len(engines) * (rounds + 1), 0
        self.memory: dict[str, Peaks] = {}
        self.rounds: dict[str, list[float]] = {engine: [] for engine in engines}
        self.facts: dict[str, Any] = {}
        self._peaks: dict[str, list[Peaks]] = {engine: [] for engine in engines}

    @property
    def engine_of_memory(self) -> str | None:
        """Return the engine whose memory is being measured; None after all of them."""
        return next((engine for engine in self.engines if engine not in self.memory), None)

    def launch(self, request: dict[str, Any], processes: int) -> None:
        from dpbench.distributed.launch import run_group

        self._progress(f"memory of {self.engine_of_memory}")
        for _, message in run_group(WORKER, request | {"engines": self.engines}, processes, 2 * PATIENCE):
            if "peaks" in message:
                self._memory(message["engine"], message["peaks"], processes)
            elif "seconds" in message:
                self._round(message["engine"], message["seconds"])
            else:
                self.facts |= message

    def _memory(self, engine: str, peaks: Peaks, processes: int) -> None:
        self._peaks[engine].append(peaks)
        if len(self._peaks[engine]) == processes:
            steps = zip(*(peaks_of_rank["tensors"] for peaks_of_rank in self._peaks[engine]), strict=True)
            process = max(peaks_of_rank["process"] for peaks_of_rank in self._peaks[engine])
            self.memory[engine] = {"tensors": [max(step) for step in steps], "process": process}
            self._done += 1
            self._progress(f"memory of {self.engine_of_memory}" if self.engine_of_memory else "rounds")

    def _round(self, engine: str, seconds: float) -> None:
        self._context.steps.write(round=len(self.rounds[engine]), engine=engine, seconds_per_step=seconds)
        self.rounds[engine].append(seconds)
        self._done += 1
        self._progress(f"rounds of {engine}")

    def _progress(self, text: str) -> None:
        self._context.report(self._done, self._total, text)


def _runnable(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """Return the engines whose package is installed, and for each of the others why it is skipped.

    Raises:
        DpbenchError: an engine does not run in this mode.
    """
    from dpbench import distributed as parallel

    for engine in settings.methods:
        parallel.require(engine, WAYS[settings.mode])
    return split_missing(settings.methods)


def require_devices(settings: Settings) -> None:
    """Require a GPU for each process before long work.

    Raises:
        DpbenchError: there are fewer; the error says how many.
    """
    import torch

    require_device(settings.device)
    if settings.device == "cuda" and (gpus := torch.cuda.device_count()) < settings.processes:
        raise DpbenchError(f"{settings.processes} processes want a GPU each, this machine has {gpus}", "use a larger machine")


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Check a run without running it and return remarks: every engine is attached to the stages of a model on the meta device.

    Raises:
        DpbenchError: an engine does not run in this mode or cannot protect the model, or there are more stages than blocks.
    """
    import torch

    from dpbench.measure.ranks import parts_of, whole_model
    from dpbench.methods import engines

    runnable, reasons = _runnable(settings)
    remarks = sorted(f"{engine}: {why}" for engine, why in reasons.items())
    model = whole_model(settings, meta=True)
    parts = parts_of(settings, model)
    for part in parts:
        optimizer = torch.optim.AdamW(part.parameters(), lr=settings.learning_rate)
        for engine in runnable:
            handle = engines.attach(engine, part.train(), optimizer, settings.mechanism(engine))
            if handle.unprotected:
                raise DpbenchError(f"engine {engine} leaves {handle.unprotected[0]} unprotected")
            handle.detach()
    bytes_of_process = max(sum(p.numel() * p.element_size() for p in part.parameters()) for part in parts)
    bytes_of_process //= settings.processes if settings.mode == "fsdp" else 1
    blocks = language_model_size(settings.size)["layers"]
    remarks.append(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {blocks} blocks, {settings.processes} processes, "
        f"at least {math.ceil(4 * bytes_of_process / 2**20)} MiB each"  # weights, gradients, two moments
    )
    return remarks

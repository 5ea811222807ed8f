"""One stage of a pipeline: `python -m dpbench.tasks.table_to_text.stage`, started by `dpbench.distributed.launch`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dpbench import distributed
from dpbench.distributed.launch import say
from dpbench.distributed.stages import Pipeline
from dpbench.distributed.traffic import Traffic
from dpbench.distributed.worker import serve
from dpbench.methods.engines.batches import Losses
from dpbench.methods.protocol import Method
from dpbench.models.seeded import materialise, parameters_on_meta
from dpbench.models.stages import LanguageStage, stage_of
from dpbench.privacy.mechanism import Mechanism
from dpbench.spec.sources import Source
from dpbench.tasks.table_to_text import pipeline
from dpbench.tasks.table_to_text.config import COUNTED
from dpbench.tasks.table_to_text.config import PipelineSettings as Settings
from dpbench.tasks.table_to_text.task import Examples, model_of
from dpbench.training.run import fit, trained_parameters
from dpbench.training.trainer import Callback, Trainer

Piece = tuple[np.ndarray[Any, Any], int]
"""Rows of a physical batch, and how many of them are real."""


def train(request: dict[str, Any], rank: int) -> None:
    """Train this rank's stage with the others, leave its weights in the parent's folder, and report what it took."""
    settings = Settings(**request["settings"])
    device = torch.device("cuda", torch.cuda.current_device()) if settings.device == "cuda" else torch.device("cpu")
    folder = Path(request["folder"])
    stored = np.load(folder / pipeline.EXAMPLES)
    ids = [part.tolist() for part in np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])]
    examples = Examples(settings, device, ids, stored["begins"].tolist(), request["pad"])
    task = StageTask(examples, stage(settings, request, rank, device), settings)
    plan = settings.mechanism(len(examples), len(examples), request["seed"])
    method = CountedStage(settings)
    optimizer = settings.optimizer.build(trained_parameters(task.model))
    context: Any = _Parent() if rank == settings.devices - 1 else None
    training = fit(settings, task, optimizer, [plan], context, [method], method.attach)
    if settings.score:
        weights = {n: p.detach().cpu().contiguous() for n, p in task.model.named_parameters() if p.requires_grad}
        save_file(weights, folder / pipeline.WEIGHTS_OF.format(rank))
    values = {name: value for name, value in asdict(training).items() if name != "threshold_metrics"}
    say({"training": values, "bytes": method.bytes, "counted": method.examples})


def stage(settings: Settings, request: dict[str, Any], rank: int, device: torch.device) -> LanguageStage:
    """Return this rank's blocks: of the full model with its weights, or without building the others where weights are random."""
    source, weights = Source(**request["source"]), Path(request["start"]) if request["start"] else None
    with nullcontext() if settings.score else parameters_on_meta():
        model = model_of(settings, request["vocabulary"], source, request["seed"], weights=weights)
    blocks = stage_of(pipeline.narrow_(model, settings), rank, settings.devices)  # type: ignore[arg-type]
    if settings.score:
        blocks.to(device)
    else:
        materialise(blocks, device, 1000 * request["seed"] + rank)
    return blocks.train()


class StageTask:
    """The examples in physical batches of one shape, which is what stages can send each other."""

    def __init__(self, examples: Examples, model: LanguageStage, settings: Settings) -> None:
        self.examples = examples
        self.model: nn.Module = model
        self.losses = examples.losses
        model.around = examples.around
        self.tokens = int(examples.lengths.max())
        self.size = max(settings.token_budget // self.tokens // settings.pieces, 1) * settings.pieces

    def physical(self, drawn: np.ndarray[Any, Any]) -> Iterator[Piece]:
        """Pieces of `size` rows; the last is filled up with row 0, which adds nothing."""
        for start in range(0, len(drawn), self.size):
            piece = drawn[start : start + self.size]
            yield np.concatenate([piece, np.zeros(self.size - len(piece), dtype=drawn.dtype)]), len(piece)

    def batch(self, rows: Piece) -> tuple[dict[str, Tensor], int]:
        return self.examples.batch(rows[0], self.tokens), rows[1]


class CountedStage(Callback):
    """The method of this stage: that of its engine, with batches that go through the pipeline.

    It counts the bytes that the stage sends in step number COUNTED, or the first after it that has examples.

    examples: that went through it in that step, padding among them.
    """

    _stages: Pipeline

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.examples = 0
        self._traffic = Traffic("step")
        self._counting = ExitStack()
        self._over = False

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Mechanism) -> Method:
        """Attach the engine to this stage, and return the method."""
        settings = self._settings
        self._stages = distributed.attach_stage(settings.method, model, optimizer, plan, settings.pieces, settings.schedule)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stages"].handle, name)

    def backward(self, losses: Losses, batch: tuple[dict[str, Tensor], int]) -> Tensor:
        data, real = batch
        if self._stages.handle.steps >= COUNTED and not self._over:
            if not self.examples:
                self._counting.enter_context(self._traffic)
            self.examples += len(data["input_ids"])
        self._traffic.phase = "backward"
        values = self._stages.backward(losses, data, real)
        self._traffic.phase = "step"
        return values

    def step_done(self, trainer: Trainer) -> None:
        self._counting.close()
        self._over = self.examples > 0

    @property
    def bytes(self) -> dict[str, int]:
        """By metric of the job."""
        traffic = self._traffic
        return {
            "clipping_bytes": traffic.collectives["backward"],
            "guard_bytes": traffic.collectives["step"],
            "activation_bytes": traffic.messages["backward"],
        }


class _Parent:
    """In place of a job's context on the last rank, which alone knows the losses: sends the parent what is logged."""

    def __init__(self) -> None:
        self.steps = self

    def write(self, **values: Any) -> None:
        say({"step": values})

    def report(self, done: int, total: int, text: str) -> None:
        say({"progress": [done, total, text]})


if __name__ == "__main__":
    serve(train)

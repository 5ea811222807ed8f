"""One stage of the job `pipeline`: `python -m dpbench.jobs.stage`, started by `dpbench.parallel.launch`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dpbench import parallel
from dpbench.engines.base import Handle
from dpbench.engines.batches import Losses
from dpbench.jobs import generation, piping
from dpbench.jobs.fitting import Backward, fit
from dpbench.jobs.generation import Examples
from dpbench.jobs.pipeline import COUNTED, Settings
from dpbench.jobs.ranks import serve
from dpbench.mechanism import Mechanism
from dpbench.models.seeded import materialise, parameters_on_meta
from dpbench.models.stages import LanguageStage, stage_of
from dpbench.parallel.launch import say
from dpbench.parallel.stages import Pipeline
from dpbench.parallel.traffic import Traffic
from dpbench.spec.sources import Source

Piece = tuple[np.ndarray[Any, Any], int]
"""Rows of a physical batch, and how many of them are real."""


def main() -> None:
    serve(train)


def train(request: dict[str, Any], rank: int) -> None:
    """Train this rank's stage with the others, leave its weights in the parent's folder, and say what it took."""
    settings = Settings(**request["settings"])
    device = torch.device("cuda", torch.cuda.current_device()) if settings.device == "cuda" else torch.device("cpu")
    examples = piping.examples(settings, request, device)
    task = StageTask(examples, stage(settings, request, rank, device), settings)
    plan = settings.mechanism(len(examples), len(examples), request["seed"])
    counter = Counter()

    def attach(engine: str, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Mechanism) -> tuple[Handle, Backward]:
        pipeline = parallel.attach_stage(engine, model, optimizer, plan, settings.pieces, settings.schedule)
        return pipeline.handle, lambda losses, batch: counter.backward(pipeline, losses, batch)

    stepper = generation.optimizer(settings.optimizer, task.model)
    context: Any = _Told(last=rank == settings.devices - 1)
    done = fit(settings.engine, task, stepper, plan, context, settings.optimizer.schedule, counter.stepped, attach=attach)
    if settings.score:
        weights = {n: p.detach().cpu().contiguous() for n, p in task.model.named_parameters() if p.requires_grad}
        save_file(weights, Path(request["folder"]) / piping.WEIGHTS_OF.format(rank))
    said = {"facts": done.facts, "warnings": done.warnings, "seconds": done.step_seconds}
    say(said | {"bytes": counter.bytes, "counted": counter.examples})


def stage(settings: Settings, request: dict[str, Any], rank: int, device: torch.device) -> LanguageStage:
    """This rank's blocks: of the whole model with its weights, or made without the others where weights are random."""
    source, weights = Source(**request["source"]), Path(request["start"]) if request["start"] else None
    with nullcontext() if settings.score else parameters_on_meta():
        whole = generation.model_of(settings, request["vocabulary"], source, request["seed"], weights=weights)
    own = stage_of(piping.narrowed(whole, settings), rank, settings.devices)  # type: ignore[arg-type]
    if settings.score:
        own.to(device)
    else:
        materialise(own, device, 1000 * request["seed"] + rank)
    return own.train()


class StageTask:
    """The examples in physical batches of one shape, which is what stages can send each other."""

    def __init__(self, examples: Examples, model: LanguageStage, settings: Settings) -> None:
        self.examples, self.model = examples, model
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


class Counter:
    """Bytes that this stage sends in step number COUNTED, or the first after it that has examples.

    examples: that went through it in that step, padding among them.
    """

    def __init__(self) -> None:
        self.examples = 0
        self._traffic = Traffic("rest")
        self._counting = ExitStack()
        self._over = False

    def backward(self, pipeline: Pipeline, losses: Losses, batch: tuple[dict[str, Tensor], int]) -> Tensor:
        data, real = batch
        if pipeline.handle.steps >= COUNTED and not self._over:
            if not self.examples:
                self._counting.enter_context(self._traffic)
            self.examples += len(data["input_ids"])
        self._traffic.phase = "backward"
        values = pipeline.backward(losses, data, real)
        self._traffic.phase = "rest"
        return values

    def stepped(self) -> None:
        self._counting.close()
        self._over = self.examples > 0

    @property
    def bytes(self) -> dict[str, int]:
        """By metric of the job."""
        found = self._traffic
        return {
            "clipping_bytes": found.collectives["backward"],
            "guard_bytes": found.collectives["rest"],
            "activation_bytes": found.messages["backward"],
        }


class _Told:
    """What `fit` wants of a context: the last rank, which alone knows the losses, tells the parent."""

    def __init__(self, last: bool) -> None:
        self.steps, self._last = self, last

    def write(self, **values: Any) -> None:
        if self._last:
            say({"step": values})

    def report(self, done: int, total: int, text: str) -> None:
        if self._last:
            say({"progress": [done, total, text]})


if __name__ == "__main__":
    main()

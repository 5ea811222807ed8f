"""The pipeline job's training: in a process a stage, or in this one with the stages as groups. Imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dpbench import engines, parallel
from dpbench.engines.base import Handle
from dpbench.engines.layers import Layout
from dpbench.errors import DpbenchError
from dpbench.jobs.contract import Context
from dpbench.jobs.fitting import Backward, fit
from dpbench.jobs.generate import model_named
from dpbench.jobs.generation import Examples, Rows, Task, optimizer
from dpbench.jobs.language_model import WEIGHTS
from dpbench.jobs.throughput import require_device
from dpbench.mechanism import Mechanism
from dpbench.models.stages import stage_of
from dpbench.parallel.virtual import by_stage
from dpbench.sampling import batches

if TYPE_CHECKING:
    from dpbench.jobs.pipeline import Settings

WORKER = "dpbench.jobs.stage"
WEIGHTS_OF, EXAMPLES = "stage{}.safetensors", "examples.npz"  # in the folder that parent and workers share
PATIENCE = 1800.0
"""Seconds a collective may take, and beyond which stages that say nothing count as hung; a logical step is well below."""


@dataclass
class Trained:
    """What training left beside the weights. seconds, tokens: of each logical step, without padding; per_example: bytes that all
    stages together send, by metric, over the examples that went through them, padding among them."""

    seconds: list[float]
    tokens: list[int]
    facts: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    per_example: dict[str, float] = field(default_factory=dict)


def require(settings: Settings, machine: bool = True) -> None:
    """Stop before long work if it cannot run.

    Args:
        machine: whether this machine must be able to.

    Raises:
        DpbenchError: no such device, fewer GPUs than stages, or an engine that does not run as stages.
    """
    if not settings.virtual:
        parallel.require(settings.engine, "stages")
    if not machine:
        return
    require_device(settings.device)
    wanted = 1 if settings.virtual else settings.devices
    if settings.device == "cuda" and (found := torch.cuda.device_count()) < wanted:
        raise DpbenchError(f"{wanted} stages want a GPU each, this machine has {found}", "use a larger machine, or virtual: true")


def words(settings: Settings) -> str:
    """What the stages are."""
    return "virtual devices on one process" if settings.virtual else "processes"


def size_remarks(settings: Settings, model: nn.Module) -> list[str]:
    """MiB of weights of the largest stage."""
    wide = 2 if settings.dtype == "bfloat16" else 4
    held = [
        sum(p.numel() * (4 if p.requires_grad else wide) for p in stage_of(model, number, settings.devices).parameters())  # type: ignore[arg-type]
        for number in range(settings.devices)
    ]
    return [f"up to {max(held) / 2**20:.0f} MiB of weights a stage"]


def whole(settings: Settings, model: nn.Module) -> Callable[[Layout], Layout] | None:
    """For `engines.attach` on one process: the stages as groups, where each has its own.

    Raises:
        DpbenchError: more stages than blocks.
    """
    grouped = by_stage(model, settings.devices)  # type: ignore[arg-type]  # stands for all clippings: the model can be cut
    return grouped if settings.clipping is not None and settings.clipping.scope == "per_device" else None


def narrowed(model: nn.Module, settings: Settings) -> nn.Module:
    """The model with the weights that are not trained in `settings.dtype`, in place; the others in float32."""
    for parameter in model.parameters():
        frozen = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)
    return model


def trained(settings: Settings, rows: Rows, plan: Mechanism, context: Context) -> Trained:
    """Train; the model of `rows`, where it has one, then holds the result.

    Raises:
        DpbenchError: the model cannot be cut, a guard stopped the run, or a process failed.
    """
    made = _virtually(settings, rows, plan, context) if settings.virtual else _in_processes(settings, rows, context)
    made.tokens = [int(rows.lengths[drawn].sum()) for drawn in batches(plan)]
    return made


def _virtually(settings: Settings, rows: Rows, plan: Mechanism, context: Context) -> Trained:
    assert isinstance(rows, Task)
    model = narrowed(rows.model, settings)

    def attach(engine: str, model: nn.Module, stepper: torch.optim.Optimizer, plan: Mechanism) -> tuple[Handle, Backward]:
        handle = engines.attach(engine, model, stepper, plan, whole=whole(settings, model))
        return handle, handle.backward

    stepper = optimizer(settings.optimizer, model)
    done = fit(settings.engine, rows, stepper, plan, context, settings.optimizer.schedule, attach=attach)
    return Trained(done.step_seconds, [], done.facts, done.warnings)


def _in_processes(settings: Settings, rows: Rows, context: Context) -> Trained:
    """Start the processes, listen to them, and take their weights."""
    from safetensors.torch import load_file

    from dpbench.parallel.launch import run_group

    with tempfile.TemporaryDirectory(prefix="dpbench-") as name:
        folder = Path(name)
        _leave_examples(rows, folder)
        request = {
            "settings": settings.model_dump(mode="json"),
            "folder": name,
            "vocabulary": rows.coding.vocabulary,
            "pad": rows.pad,
            "source": context.sources[f"model:{model_named(settings)}"].model_dump(mode="json"),
            "start": str(context.artefact("start", WEIGHTS)) if settings.start else None,
            "seed": context.seed,
            "device": settings.device,
            "threads": max(context.threads // settings.devices, 1),
            "patience": PATIENCE,
        }
        said: list[dict[str, Any]] = [{} for _ in range(settings.devices)]
        for rank, message in run_group(WORKER, request, settings.devices, PATIENCE):
            if "step" in message:
                context.steps.write(**message["step"])
            elif "progress" in message:
                context.report(*message["progress"])
            else:
                said[rank] = message
        if isinstance(rows, Task):
            for rank in range(settings.devices):
                part = stage_of(rows.model, rank, settings.devices)  # type: ignore[arg-type]
                part.load_state_dict(load_file(folder / WEIGHTS_OF.format(rank)), strict=False)
    return _together(said)


def _leave_examples(rows: Rows, folder: Path) -> None:
    ids = np.concatenate([np.asarray(own, dtype=np.int64) for own in rows.ids])
    np.savez(folder / EXAMPLES, ids=ids, lengths=rows.lengths, begins=np.asarray(rows.begins))


def examples(settings: Settings, request: dict[str, Any], device: torch.device) -> Examples:
    """In a worker: what the parent has left for it."""
    found = np.load(Path(request["folder"]) / EXAMPLES)
    ids = np.split(found["ids"], np.cumsum(found["lengths"])[:-1])
    return Examples(settings, device, ids, found["begins"].tolist(), request["pad"])


def _together(said: list[dict[str, Any]]) -> Trained:
    """One account of what all ranks have said, in their order."""
    facts = said[0]["facts"] | {
        "trainable_parameters": sum(own["facts"]["trainable_parameters"] for own in said),
        "trainable_parameters_of_each_stage": [own["facts"]["trainable_parameters"] for own in said],
        "unprotected": [name for own in said for name in own["facts"]["unprotected"]],
        "counted_examples": said[0]["counted"],
    }
    sent = {name: sum(own["bytes"][name] for own in said) for name in said[0]["bytes"]}
    per_example = {name: total / said[0]["counted"] for name, total in sent.items()} if said[0]["counted"] else {}
    return Trained(said[0]["seconds"], [], facts, said[0]["warnings"], per_example)

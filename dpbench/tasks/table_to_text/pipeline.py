"""Training in pipeline stages: in a process each, or in this process with the stages as groups."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from dpbench import distributed
from dpbench.distributed.launch import run_group
from dpbench.distributed.virtual import by_stage
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.environment import require_device
from dpbench.methods.engines.layers import Layout
from dpbench.models.stages import stage_of
from dpbench.privacy.mechanism import Mechanism
from dpbench.tasks.language_model import WEIGHTS
from dpbench.tasks.table_to_text.config import PipelineSettings as Settings
from dpbench.tasks.table_to_text.task import Rows, TableToText
from dpbench.training.run import attach_with, fit
from dpbench.training.trainer import Training

WORKER = "dpbench.tasks.table_to_text.stage"
WEIGHTS_OF, EXAMPLES = "stage{}.safetensors", "examples.npz"  # in the folder that parent and workers share
PATIENCE = 1800.0
"""Seconds a collective may take, and beyond which stages that say nothing count as hung; a logical step is well below."""


@dataclass
class Result:
    """What training left beside the weights. bytes_per_example: that all stages together send, by metric, over the examples that
    went through them, padding among them."""

    training: Training
    facts: dict[str, Any] = field(default_factory=dict)
    bytes_per_example: dict[str, float] = field(default_factory=dict)


def require(settings: Settings, machine: bool = True) -> None:
    """Stop before long work if it cannot run.

    Args:
        machine: whether this machine must be able to.

    Raises:
        DpbenchError: no such device, fewer GPUs than stages, or an engine that does not run as stages.
    """
    if not settings.virtual:
        distributed.require(settings.method, "stages")
    if machine:
        require_device(settings.device)
    needed = 1 if settings.virtual else settings.devices
    if machine and settings.device == "cuda" and (count := torch.cuda.device_count()) < needed:
        raise DpbenchError(f"{needed} stages want a GPU each, this machine has {count}", "use a larger machine, or virtual: true")


def size_remarks(settings: Settings, model: nn.Module) -> list[str]:
    """Return the MiB of weights of the largest stage, for a person."""
    frozen = 2 if settings.dtype == "bfloat16" else 4
    stages = [stage_of(model, rank, settings.devices) for rank in range(settings.devices)]  # type: ignore[arg-type]
    sizes = [sum(p.numel() * (4 if p.requires_grad else frozen) for p in stage.parameters()) for stage in stages]
    return [f"up to {max(sizes) / 2**20:.0f} MiB of weights a stage"]


def stages_as_groups(settings: Settings, model: nn.Module) -> Callable[[Layout], Layout] | None:
    """Return what makes one group of each stage on one process, under scope per_device.

    Raises:
        DpbenchError: more stages than blocks.
    """
    grouped = by_stage(model, settings.devices)  # type: ignore[arg-type]  # for all clippings, as it checks that the model can be cut
    return grouped if settings.clipping is not None and settings.clipping.scope == "per_device" else None


def narrow_(model: nn.Module, settings: Settings) -> nn.Module:
    """Bring the weights that are not trained to `settings.dtype`, in place, and the others to float32."""
    for parameter in model.parameters():
        frozen = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)
    return model


def train(settings: Settings, rows: Rows, plan: Mechanism, context: Context) -> Result:
    """Train; the model of `rows`, where it has one, then holds the result.

    Raises:
        DpbenchError: the model cannot be cut, a guard stopped the run, or a process failed.
    """
    if settings.virtual:
        assert isinstance(rows, TableToText)
        attach = attach_with(settings, stages_as_groups(settings, narrow_(rows.model, settings)))
        optimizer = settings.optimizer.build(rows.parameter_groups())
        return Result(fit(settings, rows, optimizer, [plan], context, attach=attach))
    with tempfile.TemporaryDirectory(prefix="dpbench-") as name:
        folder = Path(name)
        ids = np.concatenate([np.asarray(example, dtype=np.int64) for example in rows.ids])
        np.savez(folder / EXAMPLES, ids=ids, lengths=rows.lengths, begins=np.asarray(rows.begins))
        request = {
            "settings": settings.model_dump(mode="json"),
            "folder": name,
            "vocabulary": rows.coding.vocabulary,
            "pad": rows.pad,
            "source": context.sources[f"model:{settings.model_name}"].model_dump(mode="json"),
            "start": str(context.artefact("start", WEIGHTS)) if settings.start else None,
            "seed": context.seed,
            "device": settings.device,
            "threads": max(context.threads // settings.devices, 1),
            "patience": PATIENCE,
        }
        reports: list[dict[str, Any]] = [{} for _ in range(settings.devices)]
        for rank, message in run_group(WORKER, request, settings.devices, PATIENCE):
            if "step" in message:
                context.steps.write(**message["step"])
            elif "progress" in message:
                context.report(*message["progress"])
            else:
                reports[rank] = message
        if isinstance(rows, TableToText):
            for rank in range(settings.devices):
                part = stage_of(rows.model, rank, settings.devices)  # type: ignore[arg-type]
                part.load_state_dict(load_file(folder / WEIGHTS_OF.format(rank)), strict=False)
    return _together(reports)


def _together(reports: list[dict[str, Any]]) -> Result:
    """Make one account of what all ranks have reported, in their order: the first rank's, with sums over all."""
    trained = [Training(**report["training"]) for report in reports]
    training, counted = trained[0], reports[0]["counted"]
    facts = {
        "trainable_parameters_of_each_stage": [part.trainable_parameters for part in trained],
        "counted_examples": counted,
    }
    training.trainable_parameters = sum(part.trainable_parameters for part in trained)
    training.unprotected = [name for part in trained for name in part.unprotected]
    processors = [part.processor for part in trained if part.processor is not None]
    training.processor = sum(processors) if processors else None
    sent = {name: sum(report["bytes"][name] for report in reports) for name in reports[0]["bytes"]}
    per_example = {name: total / counted for name, total in sent.items()} if counted else {}
    return Result(training, facts, per_example)

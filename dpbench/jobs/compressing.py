"""Models, stages and measurements of the compress job. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpbench.composition import phases
from dpbench.compression import saved
from dpbench.compression.cutting import forget, keep_layers, sizes_of, smallest_layers
from dpbench.compression.distillation import distillation_losses
from dpbench.compression.layers import drop_order, layer_map
from dpbench.compression.pruning import Masks, prunable, rewind_, start_of
from dpbench.compression.settings import Drop, Prune, classes_of
from dpbench.engines.base import Handle
from dpbench.jobs import training
from dpbench.jobs.compress import Settings
from dpbench.jobs.contract import Context
from dpbench.jobs.fitting import Backward, Fit, alone, fit
from dpbench.mechanism import Mechanism
from dpbench.models import registry as models
from dpbench.models.wrappers import Encoder
from dpbench.records.schema import Metric
from dpbench.spec.sources import Source
from dpbench.tracking import StepLog

_MIB = 2**20


class CompressedTask(training.TextTask):
    """The task of `classify` with a student in the whole model's place, where there is one, and its teacher's logits.

    teacher: frozen and in eval mode, its logits [N, C] made once a row and kept; None without distillation.
    """

    settings: Settings

    def __init__(self, settings: Settings, context: Context) -> None:
        self.teacher: training.Classifier | None = None
        if settings.teacher is not None:
            self.teacher = load_classifier(settings, context.artefacts("teacher", saved.FILES))
        super().__init__(settings, context)
        student = settings.student
        if student is not None and student.start == "teacher":
            assert self.teacher is not None
            head: nn.Module = self.model.head  # type: ignore[assignment]
            head.load_state_dict(self.teacher.head.state_dict())
        if settings.distil is None:
            self.teacher = None
        else:
            assert self.teacher is not None
            self.teacher.to(self.device)
            self._logits = torch.full((len(self.train.ids), len(classes_of(settings.task))), float("nan"))

    def _encoder(self, context: Context) -> Encoder:
        own, student = self.settings, self.settings.student
        if student is None:
            return super()._encoder(context)
        source = context.sources[f"model:{own.model}"]
        if student.start == "public" and student.model is not None:
            name = student.model
            return models.encoder(name, context.sources[f"model:{name}"], student.layers, seed=context.seed)
        if student.start == "public":
            return saved.load_encoder(context.artefacts("public_student", saved.OF_ENCODER) / saved.ENCODER)
        if student.start == "teacher":
            encoder = saved.load_encoder(context.artefacts("teacher", saved.OF_ENCODER) / saved.ENCODER)
            return keep_layers(encoder, layer_map(student.layer_map, student.layers, encoder.model.config.num_hidden_layers))
        whole = models.encoder(own.model, source, own.layers, seed=context.seed)
        if student.start == "pretrained":
            return keep_layers(whole, layer_map(student.layer_map, student.layers, own.depth))
        random = models.encoder(own.model, Source(kind="scratch"), student.layers, seed=context.seed)
        random.model.embeddings.load_state_dict(whole.model.embeddings.state_dict())
        return random

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        found = super().batch(rows)
        if self.teacher is not None:
            found["teacher"] = self.teacher_logits(rows, found).to(self.device)
        return found

    def teacher_logits(self, rows: np.ndarray, batch: dict[str, Tensor]) -> Tensor:
        """[B, C] of the frozen teacher; a row that was asked for before is not computed again."""
        assert self.teacher is not None
        index = torch.as_tensor(rows)
        if bool(self._logits[index].isnan().any()):
            self.teacher.eval()
            with torch.no_grad(), self._autocast(), self._attention():
                self._logits[index] = self.teacher(batch).float().cpu()
        return self._logits[index]

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """[B] cross entropies, or the distillation's losses."""
        with self._autocast(), self._attention():
            logits = model({k: v for k, v in batch.items() if k != "teacher"}).float()
        distil = self.settings.distil
        if distil is None:
            return cross_entropy(logits, batch["label"], reduction="none")
        return distillation_losses(logits, batch["teacher"], batch["label"], distil.weight, distil.temperature)

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder  # type: ignore[return-value]

    def save(self, folder: Path) -> list[str]:
        """The classifier's files, for whoever loads it: a student's run, or transformers."""
        rest = {k: v for k, v in self.model.state_dict().items() if not k.startswith("encoder.")}
        return saved.save(self.encoder, rest, folder)


def load_classifier(settings: Settings, folder: Path) -> training.Classifier:
    """The teacher that a run left, frozen and in eval mode."""
    encoder, rest = saved.load_encoder(folder / saved.ENCODER), saved.load_rest(folder)
    model = training.Classifier(encoder, training.Head(encoder.width, settings.hidden, len(classes_of(settings.task))), settings)
    model.load_state_dict(rest | {f"encoder.{k}": v for k, v in encoder.state_dict().items()})
    return model.eval().requires_grad_(False)


def meta_model(settings: Settings, sources: dict[str, Source]) -> nn.Module:
    """What is trained first, on the meta device."""
    student = settings.student
    name = settings.shape[0] if student is not None else settings.model
    layers = student.layers if student is not None else settings.layers
    source = sources.get(f"model:{name}", Source(kind="scratch"))
    encoder = models.encoder(name, source, layers, meta=True)
    head = training.Head(encoder.width, settings.hidden, len(classes_of(settings.task)))
    model = training.Classifier(encoder, head, settings).to("meta")
    if settings.freeze_embeddings:
        encoder.model.embeddings.requires_grad_(False)
    return model


@dataclass
class Done:
    """What training and compressing left."""

    fitted: Fit
    curve: training.Curve
    facts: dict[str, Any] = field(default_factory=dict)
    masks: Masks | None = None


class _Log(StepLog):
    """A phase's steps, numbered on from those before."""

    def __init__(self, log: StepLog, before: int) -> None:
        self._log, self._before, self.warnings = log, before, log.warnings

    def write(self, **values: Any) -> None:
        self._log.write(**(values | {"step": values["step"] + self._before}))


def train(settings: Settings, task: CompressedTask, plan: Mechanism, context: Context) -> Done:
    """Train `task.model`, dropping layers or pruning weights on the way.

    Guarantee: that of `plan`: phases have draws and noise of their own, and what is dropped or pruned is decided on released
    weights.

    Raises:
        DpbenchError: as `fitting.fit`; the sparsity is not what it should be.
    """
    curve = training.Curve(task, settings.steps, settings.curve_points)
    curve(0)
    optimizer = training.optimizer(settings.optimizer, task.model)
    if settings.drop is not None:
        return _drop(settings, settings.drop, task, plan, optimizer, curve, context)
    if settings.prune is not None:
        return _prune(settings, settings.prune, task, plan, optimizer, curve, context)
    return Done(fit(settings.engine, task, optimizer, plan, context, settings.optimizer.schedule, watch=curve), curve)


def _drop(
    settings: Settings,
    drop: Drop,
    task: CompressedTask,
    plan: Mechanism,
    optimizer: torch.optim.Optimizer,
    curve: training.Curve,
    context: Context,
) -> Done:
    """Structured DPIMP. Rates fall over all steps as one; the optimizer's state of the layers that stay goes on."""
    blocks = drop.blocks(settings.depth)
    lengths = [drop.block_steps] * len(blocks)
    order = drop_order(layer_map(drop.layer_map, drop.layers, settings.depth), settings.depth, drop.first)
    left = list(range(settings.depth))  # numbers in the whole model
    rates = [group["lr"] for group in optimizer.param_groups]
    fits: list[Fit] = []
    dropped: list[list[int]] = []
    before = 0
    for number, part in enumerate(phases(plan, [*lengths, plan.steps - sum(lengths)])):
        hook = _scheduled(optimizer, rates, settings, plan.steps, before)
        own = replace(context, steps=_Log(context.steps, before), report=_shifted(context, before, plan.steps))
        fits.append(fit(settings.engine, task, optimizer, part, own, attach=hook, watch=_later(curve, before)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        before += part.steps
        if number < len(blocks):
            count = blocks[number]
            if drop.choose == "weights":
                going = [left[k] for k in smallest_layers(task.encoder, count)]
            else:
                going, order = order[:count], order[count:]
            keep_layers(task.encoder, [at for at, name in enumerate(left) if name not in going])
            left = [name for name in left if name not in going]
            forget(optimizer, task.model)
            dropped.append(going)
    return Done(_together(fits), curve, {"dropped": dropped, "kept": left, "phases": [f.handle.mechanism.steps for f in fits]})


def _prune(
    settings: Settings,
    prune: Prune,
    task: CompressedTask,
    plan: Mechanism,
    optimizer: torch.optim.Optimizer,
    curve: training.Curve,
    context: Context,
) -> Done:
    """Unstructured DPIMP: one mechanism throughout. A linear rate starts anew for the sparse model."""
    masks = Masks(task.encoder, prune.scope)
    start = start_of(task.model if prune.rewind == "all" else task.encoder)
    found: list[float] = []

    def after_step() -> None:
        done = len(found) + 1
        wanted = prune.sparsity_after(done)
        if done <= prune.steps and done % prune.every == 0:
            masks.prune_(wanted)
            masks.zero_state_(optimizer)
        if done == prune.steps and prune.rewind != "none":
            rewind_(task.model if prune.rewind == "all" else task.encoder, start)
            masks.apply_()
            optimizer.state.clear()
        found.append(masks.check(wanted))

    def attach(engine: str, model: nn.Module, stepper: torch.optim.Optimizer, own: Mechanism) -> tuple[Handle, Backward]:
        handle, backward = alone(engine, model, stepper, own)
        rates = [group["lr"] for group in stepper.param_groups]

        def before_step(*_: Any) -> None:
            """After the engine's hook, which was there first: the released gradient is in place."""
            masks.zero_gradients_()
            step = len(found)
            at, length = (step, prune.steps) if step < prune.steps else (step - prune.steps, plan.steps - prune.steps)
            for group, rate in zip(stepper.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - at / length if settings.optimizer.schedule == "linear" else 1.0)

        stepper.register_step_pre_hook(before_step)
        return handle, backward

    fitted = fit(settings.engine, task, optimizer, plan, context, after_step=after_step, attach=attach, watch=curve)
    facts = {
        "sparsity": found[-1],
        "sparsities": found,
        "prunable_weights": masks.size,
        "phases": [prune.steps, plan.steps - prune.steps],
    }
    return Done(fitted, curve, facts, masks)


def _scheduled(
    optimizer: torch.optim.Optimizer, rates: list[float], settings: Settings, steps: int, before: int
) -> Callable[..., tuple[Handle, Backward]]:
    """An `attach` under which a linear rate falls over all phases' steps as one."""

    def attach(engine: str, model: nn.Module, stepper: torch.optim.Optimizer, own: Mechanism) -> tuple[Handle, Backward]:
        handle, backward = alone(engine, model, stepper, own)
        done = [before]

        def before_step(*_: Any) -> None:
            share = 1 - done[0] / steps if settings.optimizer.schedule == "linear" else 1.0
            for group, rate in zip(stepper.param_groups, rates, strict=True):
                group["lr"] = rate * share
            done[0] += 1

        hook = stepper.register_step_pre_hook(before_step)
        detach = handle.detach

        def both() -> None:
            hook.remove()
            detach()

        handle.detach = both  # type: ignore[method-assign]
        return handle, backward

    return attach


def _later(curve: training.Curve, before: int) -> Callable[[int], None]:
    return lambda done: curve(before + done)


def _shifted(context: Context, before: int, steps: int) -> Callable[[int, int, str], None]:
    return lambda done, total, text: context.report(before + done, steps, text)


def _together(fits: list[Fit]) -> Fit:
    """Phases as one: the last one's handle, and every step's numbers."""
    processors = [f.processor for f in fits if f.processor is not None]
    return Fit(
        fits[-1].handle,
        [n for f in fits for n in f.counts],
        [c for f in fits for c in f.clipped],
        [s for f in fits for s in f.step_seconds],
        sum(processors) if processors else None,
    )


def size_metrics(settings: Settings, task: CompressedTask, done: Done) -> list[Metric]:
    """Parameters, files and work of the encoder with its head: counted, not measured."""
    every, nonzero = sizes_of(task.model)
    masked = sum(w.numel() for w in prunable(task.encoder).values()) if done.masks is not None else 0
    tokens = settings.inference.tokens if settings.inference is not None else 32
    values = {
        "parameters": (every / 1e6, "M"),
        "nonzero_parameters": (nonzero / 1e6, "M"),
        "file_size": (saved.file_bytes(task.encoder) / _MIB, "MiB"),
        "packed_size": (saved.packed_bytes(every, nonzero, masked) / _MIB, "MiB"),
        "flops": (saved.flops_of(task.encoder, tokens) / 1e9, "GFLOP"),
    }
    found = [Metric(name=name, value=value, unit=unit, kind="counted") for name, (value, unit) in values.items()]
    if done.masks is not None:
        found.append(Metric(name="sparsity", value=100 * done.facts["sparsity"], unit="%", kind="counted"))
    return found

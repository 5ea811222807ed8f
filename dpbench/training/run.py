"""From a task and its settings to the outcome of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dpbench import methods
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, Outcome
from dpbench.execution.environment import require_device
from dpbench.methods.engines.layers import Layout
from dpbench.privacy.mechanism import Mechanism
from dpbench.records.schema import Metric
from dpbench.training.callbacks import GradientClip, LearningCurve
from dpbench.training.config import TrainingSettings
from dpbench.training.trainer import Attach, Batches, Callback, Trainer, Training


class TrainingTask(Batches):
    """What is learned: a model with its initial weights, the same for all methods of a seed, its data, losses and evaluation.

    rows: n, training rows that the mechanism protects; units: metric -> its unit, of what `evaluate` measures; groups: K, that
    the clipping's scope makes of the model, where the bound depends on it; facts, warnings: for the record.
    """

    rows: int
    units: Mapping[str, str]
    groups = 1

    def __init__(self, settings: TrainingSettings) -> None:
        """Take the device of the settings.

        Raises:
            DpbenchError: no such device.
        """
        self.settings: Any = settings
        self.device = require_device(settings.device)
        self.facts: dict[str, Any] = {}
        self.warnings: list[str] = []

    def __len__(self) -> int:
        """Return how many rows can be drawn: all, where a task does not say otherwise."""
        return self.rows

    def evaluate(self) -> dict[str, float]:
        """Return metric -> value of the weights as they are; the first is the task's main metric, of which a curve is drawn."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters that are trained, as torch's optimizers take them."""
        return trained_parameters(self.model)

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch's tensors on the task's device."""
        return {name: value.to(self.device) for name, value in batch.items()}

    def measured(self, values: Mapping[str, float]) -> list[Metric]:
        """Return what `evaluate` measured as metrics of a record."""
        return [Metric(name=name, value=value, unit=self.units[name]) for name, value in values.items()]


def trained_parameters(model: nn.Module) -> list[dict[str, Any]]:
    """Return all parameters of a model that are trained, as one group of an optimizer."""
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def attach_with(settings: TrainingSettings, globalize_layout: Callable[[Layout], Layout] | None = None) -> Attach:
    """Return what attaches the method of the settings."""
    options: dict[str, Any] = {} if settings.zeroth is None else settings.zeroth.model_dump()
    return partial(methods.attach, settings.method, globalize_layout=globalize_layout, **options)


def fit(
    settings: TrainingSettings,
    task: Batches,
    optimizer: Optimizer,
    phases: Sequence[Mechanism],
    context: Context,
    callbacks: Sequence[Callback] = (),
    attach: Attach | None = None,
    steps_of_schedule: Callable[[int], tuple[int, int]] | None = None,
) -> Training:
    """Train a task's model as the settings say.

    Args:
        phases: mechanisms that follow one another.
        attach: instead of the settings' method on this process.
        steps_of_schedule: step -> (step, steps) of a schedule that does not run over all steps.
    """
    steps = sum(plan.steps for plan in phases)

    def rate(largest: float, step: int, scale: float) -> float:
        at, total = (step, steps) if steps_of_schedule is None else steps_of_schedule(step)
        return settings.optimizer.rate(largest, at, total, scale)

    attach, by_bound = attach or attach_with(settings), settings.optimizer.by_bound
    return Trainer(task, optimizer, attach, phases, context, rate, callbacks, by_bound, settings.method).fit()


def train(
    settings: TrainingSettings,
    task: TrainingTask,
    context: Context,
    curve_points: int | None = None,
    callbacks: Sequence[Callback] = (),
    evaluate_every: int | None = None,
    plan: Mechanism | None = None,
    phases: Sequence[Mechanism] | None = None,
    steps_of_schedule: Callable[[int], tuple[int, int]] | None = None,
) -> Outcome:
    """Train a task's model, evaluate it, and report what every training run reports.

    Args:
        curve_points: evaluations along training, beside one of the initial weights.
        evaluate_every: steps between two of them, instead. Without either the weights are evaluated once, at the end.
        plan: the mechanism, instead of that of the settings; phases: what it is cut into.
        steps_of_schedule: as in `fit`.

    Raises:
        DpbenchError: the mechanism is out of reach, the method cannot serve the model, or one of its guards stopped the run.
    """
    has_curve = curve_points is not None or evaluate_every is not None
    every = evaluate_every or max(1, settings.steps // (curve_points or 1))
    curve = LearningCurve(task.model, task.evaluate, every)
    facts: dict[str, Any] = {"curve": curve.points} if has_curve else {}
    if has_curve or settings.steps == 0:
        curve.evaluate(0)
    if settings.steps == 0:
        return Outcome(task.measured(curve.last), facts=facts | task.facts, warnings=task.warnings, device=settings.device)
    plan = plan or settings.mechanism(task.rows, len(task), context.seed, task.groups)
    optimizer = settings.optimizer.build(task.parameter_groups())
    longest = settings.optimizer.gradient_clip
    watching = [*callbacks, *([] if longest is None else [GradientClip(longest)]), *([curve] if has_curve else [])]
    training = fit(settings, task, optimizer, phases or [plan], context, watching, None, steps_of_schedule)
    if not has_curve:
        curve.evaluate(settings.steps)
    facts |= {"train_rows": task.rows, "rows_drawn_from": len(task)} | task.facts
    return outcome_of(settings, plan, training, task.measured(curve.last), facts, task.warnings)


def outcome_of(
    settings: TrainingSettings,
    plan: Mechanism,
    training: Training,
    measured: Sequence[Metric],
    facts: dict[str, Any],
    warnings: Sequence[str] = (),
) -> Outcome:
    """Return the outcome of a training run: what its task measured, its epsilon, and what every training run reports.

    Args:
        facts, warnings: of the task.
    """
    privacy = settings.privacy(plan, training.unprotected)
    metrics = [*measured, *settings.epsilon_metrics(plan, privacy), *training.metrics(plan)]
    warnings = [*training.warnings, *settings.without_effect, *warnings]
    return Outcome(metrics, plan.describe(), privacy, training.facts | facts, warnings=warnings, device=settings.device)


def dry_run(
    settings: TrainingSettings,
    model: nn.Module,
    plan: Mechanism | None,
    parameter_groups: list[dict[str, Any]] | None = None,
    globalize_layout: Callable[[Layout], Layout] | None = None,
) -> list[str]:
    """Attach the method to a model on the meta device; return what would be trained and at which noise.

    Args:
        plan: None for a run without steps.
        parameter_groups: None for all parameters that are trained.

    Raises:
        DpbenchError: the method cannot serve the model, or leaves a parameter unprotected.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    if plan is None:
        return [f"{total / 1e6:.2f} M parameters, evaluated as they start"]
    of_total = "" if total == trained else f" of {total / 1e6:.2f} M"
    remarks = [f"{trained / 1e6:.2f} M trainable parameters{of_total}"]
    optimizer = settings.optimizer.build(parameter_groups or trained_parameters(model))
    method = attach_with(settings, globalize_layout)(model, optimizer, plan)
    unprotected = method.unprotected
    method.detach()
    if settings.by_zeroth:
        remarks.append("two forward passes a step")
    if unprotected and settings.plugin.kind == "published_engine":
        return [*remarks, f"epsilon none: {len(unprotected)} tensors unprotected, as published"]
    if unprotected:
        raise DpbenchError(f"method {settings.method} leaves {unprotected[0]} unprotected")
    if plan.private and plan.noise_multiplier > 0:
        alone = replace(plan, spent=())
        remarks.append(f"epsilon {alone.epsilon():.3f} at noise multiplier {plan.noise_multiplier:.3f}")
    return [*remarks, f"epsilon {plan.epsilon():.3f} with its teacher"] if plan.spent else remarks

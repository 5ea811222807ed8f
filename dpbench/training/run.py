"""From a task and its settings to the outcome of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from dpbench import methods
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, Outcome
from dpbench.methods.protocol import Method
from dpbench.privacy.mechanism import Mechanism
from dpbench.records.schema import Metric
from dpbench.training.callbacks import LearningCurve
from dpbench.training.config import TrainingSettings
from dpbench.training.trainer import Attach, Batches, Callback, Trainer, Training

if TYPE_CHECKING:
    from dpbench.methods.engines.layers import Layout


class TrainingTask(Batches):
    """What is learned: a model with its initial weights, the same for all methods of a seed, its data, losses and evaluation.

    rows: n, training rows that the mechanism protects; units: metric -> its unit, of what `evaluate` measures; groups: K, that
    the clipping's scope makes of the model, where the bound depends on it; facts, warnings: for the record.
    """

    rows: int
    units: Mapping[str, str]
    groups = 1
    facts: dict[str, Any]
    warnings: list[str]

    def __len__(self) -> int:
        """Return how many rows can be drawn."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Return metric -> value of the weights as they are; the first one is the task's own, of which a curve is drawn."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters that are trained, as torch's optimizers take them."""
        return trained_parameters(self.model)

    def measured(self, values: Mapping[str, float]) -> list[Metric]:
        """Return what `evaluate` measured as metrics of a record."""
        return [Metric(name=name, value=value, unit=self.units[name]) for name, value in values.items()]


def trained_parameters(model: nn.Module) -> list[dict[str, Any]]:
    """Return all parameters of a model that are trained, as one group of an optimizer."""
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def attach_with(settings: TrainingSettings, globalize_layout: Callable[[Layout], Layout] | None = None) -> Attach:
    """Return what attaches the method of the settings."""
    options: dict[str, Any] = {} if settings.zeroth is None else settings.zeroth.model_dump()

    def attach(model: nn.Module, optimizer: Optimizer, plan: Mechanism) -> Method:
        return methods.attach(settings.method, model, optimizer, plan, globalize_layout=globalize_layout, **options)

    return attach


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
        steps_of_schedule: step -> (step, steps) of a schedule that does not run over the whole of training.
    """
    chosen, steps = settings.optimizer, sum(plan.steps for plan in phases)

    def rate(base: float, step: int, scale: float) -> float:
        at, of = (step, steps) if steps_of_schedule is None else steps_of_schedule(step)
        return chosen.rate(base, at, of, scale)

    trainer = Trainer(
        task,
        optimizer,
        attach or attach_with(settings),
        phases,
        context,
        rate,
        callbacks,
        scale_by_bound=chosen.by_bound,
        title=settings.method,
    )
    return trainer.fit()


def train(
    settings: TrainingSettings,
    task: TrainingTask,
    context: Context,
    curve_points: int | None = None,
    callbacks: Sequence[Callback] = (),
    evaluate_every: int | None = None,
) -> Outcome:
    """Train a task's model, evaluate it, and report what every training run reports.

    Args:
        curve_points: evaluations along training, beside one of the initial weights.
        evaluate_every: steps between two of them, instead. Without either the weights are evaluated once, at the end.

    Raises:
        DpbenchError: the mechanism is out of reach, the method cannot serve the model, or one of its guards stopped the run.
    """
    steps, has_curve = max(1, settings.steps), curve_points is not None or evaluate_every is not None
    every = evaluate_every or max(1, steps // (curve_points or 1))
    curve = LearningCurve(task.model, task.evaluate, steps, every)
    if settings.steps == 0:
        curve.evaluate(0)
        points = {"curve": curve.points} if has_curve else {}
        return Outcome(task.measured(curve.last), facts=points | task.facts, warnings=task.warnings, device=settings.device)
    if has_curve:
        curve.evaluate(0)
    plan = settings.mechanism(task.rows, len(task), context.seed, task.groups)
    optimizer = settings.optimizer.build(task.parameter_groups())
    watching = [curve] if has_curve else []
    training = fit(settings, task, optimizer, [plan], context, [*callbacks, *watching])
    if not has_curve:
        curve.evaluate(settings.steps)
    privacy = settings.privacy(plan, training.unprotected)
    metrics = [*task.measured(curve.last), *settings.epsilon_metrics(plan, privacy), *training.metrics(plan)]
    facts = {
        "train_rows": task.rows,
        "rows_drawn_from": len(task),
        **({"curve": curve.points} if has_curve else {}),
        **training.facts,
        **task.facts,
    }
    warnings = [*training.warnings, *settings.without_effect, *task.warnings]
    return Outcome(metrics, plan.describe(), privacy, facts, warnings=warnings, device=settings.device)


def dry_run(
    settings: TrainingSettings,
    model: nn.Module,
    parameter_groups: list[dict[str, Any]],
    plan: Mechanism | None,
    globalize_layout: Callable[[Layout], Layout] | None = None,
) -> list[str]:
    """Attach the method to a model on the meta device; return what would be trained and at which noise.

    Args:
        plan: None for a run without steps.

    Raises:
        DpbenchError: the method cannot serve the model, or leaves a parameter unprotected.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    of = "" if every == trained else f" of {every / 1e6:.2f} M"
    if plan is None:
        return [f"{every / 1e6:.2f} M parameters, evaluated as they start"]
    remarks = [f"{trained / 1e6:.2f} M trainable parameters{of}"]
    method = attach_with(settings, globalize_layout)(model, settings.optimizer.build(parameter_groups), plan)
    unprotected = method.unprotected
    method.detach()
    if settings.by_zeroth:
        remarks.append("two forward passes a step")
    if unprotected and settings.plugin.kind == "published_engine":
        return [*remarks, f"epsilon none: {len(unprotected)} tensors unprotected, as published"]
    if unprotected:
        raise DpbenchError(f"method {settings.method} leaves {unprotected[0]} unprotected")
    if plan.private and plan.noise_multiplier > 0:
        remarks.append(f"epsilon {plan.epsilon():.3f} at noise multiplier {plan.noise_multiplier:.3f}")
    return remarks

"""A compression run: stages, training, and what is measured of the result."""

from __future__ import annotations

from typing import Any

from dpbench.compression.callbacks import LayerDropping, MagnitudePruning
from dpbench.compression.config import Settings
from dpbench.compression.measures import epsilon_metrics, inference_metrics, size_metrics
from dpbench.compression.task import CompressedTask
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, Outcome, metric
from dpbench.privacy.composition import Release, phases, release_in
from dpbench.privacy.mechanism import Mechanism
from dpbench.records.privacy import privacy_of
from dpbench.records.schema import Record
from dpbench.training.callbacks import LearningCurve
from dpbench.training.run import fit


def train(settings: Settings, context: Context) -> Outcome:
    """Train the task's model, dropping layers or pruning weights on the way, and measure what is left.

    Guarantee: that of the mechanism of all stages: phases have draws and noise of their own, and what is dropped or pruned is
    decided on released weights.

    Raises:
        DpbenchError: the mechanism is out of reach, a guard of the method stopped the run, or the sparsity is not what it should
            be.
    """
    task = CompressedTask(settings, context)
    teacher = context.parent("teacher") if settings.teacher is not None else None
    plan = settings.plan(task.rows, len(task), context.seed, _spent(settings, teacher))
    if teacher is not None and teacher.mechanism is not None and teacher.mechanism["seed"] == plan.seed:
        raise DpbenchError("teacher and student have one seed, so the same noise twice", "report this: it is a fault of the job")
    dropping = LayerDropping(settings.drop, task.encoder, settings.depth) if settings.drop is not None else None
    pruning = MagnitudePruning(settings.prune, task.model, task.encoder) if settings.prune is not None else None
    curve = LearningCurve(task.model, task.evaluate, settings.steps, max(1, settings.steps // settings.curve_points))
    curve.evaluate(0)
    training = fit(
        settings,
        task,
        settings.optimizer.build(task.parameter_groups()),
        [plan] if dropping is None else phases(plan, dropping.phase_steps(plan.steps)),
        context,
        [callback for callback in (dropping, pruning, curve) if callback is not None],
        steps_of_schedule=None if pruning is None else lambda step: pruning.steps_of_schedule(step, settings.steps),
    )
    privacy = privacy_of(plan)
    start, end = curve.points[0][1], curve.points[-1][1]
    metrics = [metric("accuracy", end, "%"), metric("gained", end - start, "%"), *epsilon_metrics(settings, privacy)]
    metrics += [*size_metrics(settings, task, pruning), *inference_metrics(settings, context), *training.metrics(plan)]
    facts = {
        "train_rows": task.rows,
        "rows_drawn_from": len(task),
        "curve": curve.points,
        **training.facts,
        **task.facts,
        **_teacher_facts(teacher),
        **_compression_facts(settings, plan, dropping, pruning),
    }
    files = task.save(context.out) if settings.save_model or not settings.compresses else []
    warnings = [*training.warnings, *settings.without_effect, *task.warnings]
    return Outcome(metrics, plan.describe(), privacy, facts, files, warnings=warnings, device=settings.device)


def _spent(settings: Settings, teacher: Record | None) -> tuple[Release, ...]:
    """Return what the teacher has spent on the same rows."""
    if teacher is None or settings.clipping is None:
        return ()
    return (release_in(teacher.mechanism, settings.relation),)


def _teacher_facts(teacher: Record | None) -> dict[str, Any]:
    if teacher is None:
        return {}
    return {"teacher_run": teacher.run, "teacher_curve": teacher.facts.get("curve", [])}


def _compression_facts(
    settings: Settings, plan: Mechanism, dropping: LayerDropping | None, pruning: MagnitudePruning | None
) -> dict[str, Any]:
    """Return what was dropped or pruned, and when."""
    if dropping is not None:
        return {"dropped": dropping.dropped, "kept": dropping.kept, "phases": dropping.phase_steps(plan.steps)}
    if pruning is None or settings.prune is None:
        return {}
    return {
        "sparsity": pruning.sparsities[-1],
        "sparsities": pruning.sparsities,
        "prunable_weights": pruning.masks.size,
        "phases": [settings.prune.steps, plan.steps - settings.prune.steps],
    }

"""Train a text classifier under a budget and make it small: by distillation into a student, by dropping layers, by pruning."""

from __future__ import annotations

from dpbench.compression.config import Settings, parents, uses
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, Outcome, metric
from dpbench.privacy.composition import phases, release_in
from dpbench.spec.sources import Source

PLUGIN = {
    "kind": "job",
    "name": "compression",
    "version": 1,
    "summary": "train a text classifier, or a compressed one, and measure its accuracy, size and speed",
    "parents": ["compression", "inference", "public_student"],
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train, dropping layers or pruning weights on the way, evaluate along it, and measure what is left.

    Guarantee: epsilon is that of the mechanism of all stages: phases draw rows and noise independently, and what is dropped or
    pruned is decided on released weights.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, a guard of the method or of pruning stopped the run.
    """
    from dpbench.compression.dropping import LayerDropping
    from dpbench.compression.pruning import MagnitudePruning
    from dpbench.compression.task import CompressedTask, inference_metrics, size_metrics
    from dpbench.training.run import train

    task = CompressedTask(settings, context)
    teacher = context.parent("teacher") if settings.teacher is not None else None
    spent = () if teacher is None or settings.clipping is None else (release_in(teacher.mechanism, settings.relation),)
    plan = settings.plan(task.rows, len(task), context.seed, spent)
    if teacher is not None and teacher.mechanism is not None and teacher.mechanism["seed"] == plan.seed:
        raise DpbenchError("teacher and student have one seed, so the same noise twice", "report this: it is a fault of the job")
    dropping = LayerDropping(settings.drop, task.encoder, settings.depth) if settings.drop is not None else None
    pruning = MagnitudePruning(settings.prune, task.model, task.encoder) if settings.prune is not None else None
    callbacks = [callback for callback in (dropping, pruning) if callback is not None]
    outcome = train(
        settings,
        task,
        context,
        settings.curve_points,
        callbacks,
        plan=plan,
        phases=None if dropping is None else phases(plan, dropping.phase_steps(plan.steps)),
        steps_of_schedule=None if pruning is None else lambda step: pruning.steps_of_schedule(step, settings.steps),
    )
    (_, start), *_, (_, end) = outcome.facts["curve"]
    outcome.metrics.append(metric("gained", end - start, "%"))
    outcome.metrics += [*size_metrics(settings, task, pruning), *inference_metrics(settings, context)]
    if teacher is not None:
        outcome.facts |= {"teacher_run": teacher.run, "teacher_curve": teacher.facts.get("curve", [])}
    for callback in callbacks:
        outcome.facts |= callback.facts(plan.steps)
    if settings.save_model or not (settings.student or settings.drop or settings.prune):
        outcome.artefacts = task.save(context.out)
    return outcome


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its method, and the budget of all stages."""
    from dpbench.compression.task import meta_model
    from dpbench.tasks.checking import trained_rows
    from dpbench.tasks.text_classification.task import parameter_groups
    from dpbench.training.run import dry_run

    count = trained_rows(settings, sources)
    model = meta_model(settings, sources).train()
    plan = settings.plan(count, count, 0) if count else settings.mechanism_of(0)
    return dry_run(settings, model, plan, parameter_groups(settings, model))

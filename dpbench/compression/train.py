"""A compression run: stages, training, and what is measured of the result."""

from __future__ import annotations

from dpbench.compression import saved
from dpbench.compression.callbacks import LayerDropping, MagnitudePruning
from dpbench.compression.config import Settings
from dpbench.compression.cutting import sizes_of
from dpbench.compression.task import CompressedTask
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, Outcome, metric
from dpbench.privacy.composition import phases, release_in
from dpbench.records.schema import Metric
from dpbench.training import run


def train(settings: Settings, context: Context) -> Outcome:
    """Train the task's model, dropping layers or pruning weights on the way, and measure the result.

    Guarantee: that of the mechanism of all stages: phases draw rows and noise independently, and what is dropped or pruned is
    decided on released weights.

    Raises:
        DpbenchError: the mechanism is out of reach, a guard of the method stopped the run, or the sparsity is not what it should
            be.
    """
    task = CompressedTask(settings, context)
    teacher = context.parent("teacher") if settings.teacher is not None else None
    spent = () if teacher is None or settings.clipping is None else (release_in(teacher.mechanism, settings.relation),)
    plan = settings.plan(task.rows, len(task), context.seed, spent)
    if teacher is not None and teacher.mechanism is not None and teacher.mechanism["seed"] == plan.seed:
        raise DpbenchError("teacher and student have one seed, so the same noise twice", "report this: it is a fault of the job")
    dropping = LayerDropping(settings.drop, task.encoder, settings.depth) if settings.drop is not None else None
    pruning = MagnitudePruning(settings.prune, task.model, task.encoder) if settings.prune is not None else None
    callbacks = [callback for callback in (dropping, pruning) if callback is not None]
    outcome = run.train(
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
    if settings.save_model or not settings.compresses:
        outcome.artefacts = task.save(context.out)
    return outcome


def inference_metrics(settings: Settings, context: Context) -> list[Metric]:
    """Return latency and throughput of this run's shape, from the run that timed all shapes in turn."""
    names = {"latency": "ms", "throughput": "examples/s"}
    if settings.inference is None:
        return [Metric(name=n, value=None, unit=u, note="inference is not timed at this tier") for n, u in names.items()]
    record = context.parent("inference")
    shape = {"model": settings.shape[0], "layers": str(settings.shape[1])}
    return [m.model_copy(update={"labels": {}}) for m in record.metrics if m.labels == shape and m.name in names]


def size_metrics(settings: Settings, task: CompressedTask, pruning: MagnitudePruning | None) -> list[Metric]:
    """Return parameters, files and work of the encoder with its head: counted, not measured."""
    parameters, nonzero = sizes_of(task.model)
    masked = pruning.masks.size if pruning is not None else 0
    tokens = settings.inference.tokens if settings.inference is not None else 32
    values = {
        "parameters": (parameters / 1e6, "M"),
        "nonzero_parameters": (nonzero / 1e6, "M"),
        "file_size": (saved.file_bytes(task.encoder) / 2**20, "MiB"),
        "packed_size": (saved.packed_bytes(parameters, nonzero, masked) / 2**20, "MiB"),
        "flops": (saved.flops_of(task.encoder, tokens) / 1e9, "GFLOP"),
    }
    metrics = [Metric(name=name, value=value, unit=unit, kind="counted") for name, (value, unit) in values.items()]
    if pruning is not None:
        metrics.append(Metric(name="sparsity", value=100 * pruning.sparsities[-1], unit="%", kind="counted"))
    return metrics

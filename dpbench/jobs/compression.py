"""Train a text classifier under a budget and make it small: by distillation into a student, by dropping layers, by pruning."""

from __future__ import annotations

from dpbench.compression.config import Settings, parents, uses
from dpbench.execution.contract import Context, Outcome
from dpbench.spec.sources import Source

PLUGIN = {
    "kind": "job",
    "name": "compression",
    "version": 1,
    "summary": "train a text classifier, or a compressed one, and measure its accuracy, size and speed",
    "parents": ["compression", "inference", "public_student"],
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train, compress, evaluate along the way, and measure what is left.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, a guard of the method or of pruning stopped the run.
    """
    from dpbench.compression.train import train

    return train(settings, context)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its method, and the budget of all stages."""
    from dpbench.compression.task import meta_model
    from dpbench.tasks.text_classification.task import check_rows, parameter_groups
    from dpbench.training.run import dry_run

    count = check_rows(settings, sources)
    model = meta_model(settings, sources).train()
    plan = settings.plan(count, count, 0) if count else settings.mechanism_of(0)
    return dry_run(settings, model, plan, parameter_groups(settings, model))

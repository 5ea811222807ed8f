"""Train a text classifier: the full encoder, or an MLP on a frozen encoder's features."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome
from dpbench.spec.sources import Source
from dpbench.tasks.text_classification.config import Settings, parents, uses

PLUGIN = {
    "kind": "job",
    "name": "text_classification",
    "version": 1,
    "summary": "train a text classifier and measure its accuracy",
    "parents": ["text_features"],
}

CURVE_POINTS = {"features": 15, "full": 5}
"""Points of a learning curve: validation costs an MLP nothing, an encoder seconds."""


def run(settings: Settings, context: Context) -> Outcome:
    """Train; measure accuracy on the validation split, or on held-out training rows, along the way and at the end.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, or a guard of the method stopped the run.
    """
    from dpbench.tasks.text_classification import task
    from dpbench.training.run import train

    task_of_run = (task.FeatureTask if settings.training == "features" else task.TextTask)(settings, context)
    return train(settings, task_of_run, context, CURVE_POINTS[settings.training])


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its method, and the budget."""
    from dpbench.tasks.checking import trained_rows
    from dpbench.tasks.text_classification import task
    from dpbench.training.run import dry_run

    count = trained_rows(settings, sources)
    model = task.meta_model(settings, sources).train()
    return dry_run(settings, model, settings.mechanism_of(count), task.parameter_groups(settings, model))

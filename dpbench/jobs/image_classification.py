"""Train an image classifier, from scratch or on frozen features, with augmentation and averaged weights."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome
from dpbench.spec.sources import Source
from dpbench.tasks.image_classification.config import Settings, parents, uses

PLUGIN = {
    "kind": "job",
    "name": "image_classification",
    "version": 1,
    "summary": "train an image classifier and measure its accuracy",
    "parents": ["image_features"],
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train, then measure accuracy on the evaluated images and on the first training images.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, or a guard of the method stopped the run.
    """
    from dpbench.tasks.image_classification.task import ImageTask
    from dpbench.training.callbacks import WeightAverage
    from dpbench.training.run import train

    task = ImageTask(settings, context)
    averages = [] if settings.ema is None else [WeightAverage(task.model, settings.ema)]
    return train(settings, task, context, callbacks=averages)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its method, and the budget."""
    from dpbench.tasks.checking import trained_rows
    from dpbench.tasks.image_classification.task import model_of
    from dpbench.training.run import dry_run

    count = trained_rows(settings, sources)
    return dry_run(settings, model_of(settings, meta=True).train(), settings.mechanism_of(count))

"""Train a language model to put tables into words, and score what it writes for inputs it has not seen."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome
from dpbench.spec.sources import Source
from dpbench.tasks.language_model import parents, uses
from dpbench.tasks.table_to_text.config import Settings

PLUGIN = {
    "kind": "job",
    "name": "table_to_text",
    "version": 2,
    "summary": "train a language model on inputs and texts, and score what it writes for new inputs",
    "parents": ["language_modeling"],
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train, decode the inputs of the evaluated split, score.

    Raises:
        DpbenchError: no such device, a package that scores is missing, the mechanism is out of reach, or a guard of the method
            stopped the run.
    """
    from dpbench.metrics.text import require
    from dpbench.tasks.table_to_text.task import TableToText
    from dpbench.training.run import train

    require()
    task = TableToText(settings, context)
    task.quicken()
    return train(settings, task, context)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its method, and the budget."""
    from dpbench.tasks.table_to_text.task import meta_model
    from dpbench.training.run import dry_run

    model, count = meta_model(settings, sources)
    return dry_run(settings, model, settings.mechanism_of(count))

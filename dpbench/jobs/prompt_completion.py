"""Prompt a language model: train it on how prompts go on, and measure how often it goes on right."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome
from dpbench.spec.sources import Source
from dpbench.tasks.language_model import parents, uses
from dpbench.tasks.prompt_completion.config import Settings

PLUGIN = {
    "kind": "job",
    "name": "prompt_completion",
    "version": 1,
    "summary": "train a language model on prompts and score how it goes on: label words, or answers that it writes",
    "parents": ["language_modeling"],
}

CURVE_POINTS = 4
"""Points of a learning curve, beside its start; answers take long to write, so that they are scored at the end alone."""


def run(settings: Settings, context: Context) -> Outcome:
    """Train, and score how the evaluated prompts go on: accuracy, or F1 and exact match, and the loss of the evaluated rows.

    Raises:
        DpbenchError: no such device, label words without a token, the mechanism is out of reach, or a guard of the method stopped
            the run.
    """
    from dpbench.tasks.prompt_completion.task import PromptTask
    from dpbench.training.run import train

    return train(settings, PromptTask(settings, context), context, None if settings.writes_answers else CURVE_POINTS)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its method, and the budget."""
    from dpbench.tasks.checking import trained_rows
    from dpbench.tasks.prompt_completion.task import model_of
    from dpbench.training.run import dry_run

    count = trained_rows(settings, sources)
    model = model_of(settings, settings.vocabulary, sources[f"model:{settings.model_name}"], meta=True)
    return dry_run(settings, model, settings.mechanism_of(count))

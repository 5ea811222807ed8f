"""Pre-train a small GPT from scratch by next-token prediction, and measure its validation loss."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome, metric
from dpbench.spec.models import label
from dpbench.spec.sources import Source
from dpbench.tasks.language_modeling.config import Settings, uses

PLUGIN = {
    "kind": "job",
    "name": "language_modeling",
    "version": 1,
    "summary": "pre-train a GPT from scratch and measure its validation loss",
}


def run(settings: Settings, context: Context) -> Outcome:
    """Train, then measure the validation loss.

    Raises:
        DpbenchError: no such device, the text fills too few blocks, the mechanism is out of reach, or a guard of the method
            stopped the run.
    """
    from dpbench.tasks.language_model import WEIGHTS
    from dpbench.tasks.language_modeling.task import LanguageModelingTask
    from dpbench.training.run import train

    task = LanguageModelingTask(settings, context)
    outcome = train(settings, task, context, evaluate_every=settings.evaluate_every)
    privacy, mechanism = outcome.privacy, outcome.mechanism or {}
    if privacy is not None:
        outcome.metrics.append(metric("noise_std", mechanism["noise_std"], ""))
        if privacy.epsilon is not None and settings.noise != "calibrated":
            asked = label(settings.epsilon)
            outcome.warnings.append(f"noise calibrated for epsilon {asked} and added as published gives {privacy.epsilon:.4g}")
    outcome.facts["trained_tokens"] = round(outcome.facts["mean_batch_size"] * settings.steps) * settings.tokens
    if settings.save_weights:
        task.save(context.out / WEIGHTS)
        outcome.artefacts.append(WEIGHTS)
    return outcome


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its method, and the budget."""
    from dpbench.tasks.checking import checked_rows
    from dpbench.tasks.language_modeling.task import groups_of, model_of, parameter_groups
    from dpbench.training.run import dry_run

    checked_rows(settings, sources)
    model = model_of(settings, meta=True)
    plan = settings.mechanism(settings.train_blocks, settings.train_blocks, 0, groups_of(settings, model))
    return dry_run(settings, model, plan, parameter_groups(settings, model))

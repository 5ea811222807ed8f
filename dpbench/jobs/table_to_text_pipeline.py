"""Train a language model cut into pipeline stages, a process each, and score what the trained model writes."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome, metric, over_rounds
from dpbench.records.schema import Metric
from dpbench.spec.sources import Source
from dpbench.tasks.language_model import parents, uses
from dpbench.tasks.table_to_text.config import COUNTED
from dpbench.tasks.table_to_text.config import PipelineSettings as Settings

PLUGIN = {
    "kind": "job",
    "name": "table_to_text_pipeline",
    "version": 1,
    "summary": "train a language model in pipeline stages, count what they exchange, and score what it writes",
    "parents": ["language_modeling"],
}

SCORES = ("bleu", "rouge_1", "rouge_2", "rouge_l")
BYTES = {
    "clipping_bytes": "collectives while gradients are bounded",
    "guard_bytes": "collectives of a step outside its backward passes",
    "activation_bytes": "messages from stage to stage",
}
NO_SCORE = "not scored: its weights are random, for those of the published model are not public"
NO_BYTES = "not measured: virtual devices on one process exchange nothing"


def run(settings: Settings, context: Context) -> Outcome:
    """Train, put the evaluated split's inputs into words, score; bytes and seconds of a step on the way.

    Raises:
        DpbenchError: no such device or fewer GPUs than stages, an engine that does not run in a pipeline, a package that scores
            is missing, the mechanism is out of reach, a guard of the engine stopped the run, or a process failed.
    """
    from dpbench.metrics.text import require
    from dpbench.privacy.sampling import batches
    from dpbench.tasks.table_to_text import pipeline
    from dpbench.tasks.table_to_text.task import Rows, TableToText
    from dpbench.training.run import outcome_of

    pipeline.require(settings)
    require()
    rows = TableToText(settings, context) if settings.score else Rows(settings, context)
    plan = settings.mechanism(len(rows), len(rows), context.seed)
    result = pipeline.train(settings, rows, plan, context)
    training, sent, timed = result.training, result.bytes_per_example, slice(COUNTED + 1, None)
    tokens = [int(rows.lengths[drawn].sum()) for drawn in batches(plan)]  # of each logical step, without padding
    rates = [number / seconds for number, seconds in zip(tokens, training.step_seconds, strict=True)]
    metrics = [
        over_rounds("throughput", "tokens/s", {}, rates[timed]),
        over_rounds("step_seconds", "s", {}, training.step_seconds[timed]),
        *(Metric(name=name, value=sent.get(name), unit="B", note="" if name in sent else NO_BYTES) for name in BYTES),
    ]
    if isinstance(rows, TableToText):
        scores = rows.score()
        metrics += [metric(name, scores[name], "") for name in SCORES]
        metrics.append(metric("text_loss", rows.text_loss(), "nats"))
    else:
        metrics += [Metric(name=name, value=None, unit="", note=NO_SCORE) for name in (*SCORES, "text_loss")]
    facts = {"example": "one input with one text", "devices": settings.devices, "stages_are": settings.stages_are}
    return outcome_of(settings, plan, training, metrics, facts | result.facts | rows.facts)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, the model on the meta device with its stages as groups, and the budget.

    Raises:
        DpbenchError: what a run would stop at, more stages than blocks among it.
    """
    from dpbench.tasks.table_to_text import pipeline
    from dpbench.tasks.table_to_text.task import meta_model
    from dpbench.training.run import dry_run

    pipeline.require(settings, machine=False)
    model, count = meta_model(settings, sources)
    layout = pipeline.stages_as_groups(settings, model)
    remarks = dry_run(settings, model, settings.mechanism_of(count), globalize_layout=layout)
    return [*remarks, f"{settings.devices} {settings.stages_are}", *pipeline.size_remarks(settings, model)]

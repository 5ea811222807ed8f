"""Train a language model cut into pipeline stages, a process each, and score what the whole then writes.

Under scope per_device every stage clips its own trained parameters by their own norm, with threshold bound / sqrt(devices), and
adds its noise; under scope flat the stages exchange norms (He et al., ICLR 2023).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpbench.jobs import generate
from dpbench.jobs.contract import Context, Outcome, metric, over_rounds
from dpbench.jobs.generate import parents, uses
from dpbench.records.schema import Metric
from dpbench.spec.sources import Source

__all__ = ["Settings", "check", "parents", "run", "uses"]

PLUGIN = {
    "kind": "job",
    "name": "pipeline",
    "version": 1,
    "summary": "train a language model in pipeline stages, count what they exchange, and score what it writes",
    "parents": ["language_model"],
}

COUNTED = 1
"""Number of the step in which bytes are counted, which takes its time: the first sets the pipeline up."""

SCORES = ("bleu", "rouge_1", "rouge_2", "rouge_l")
BYTES = {
    "clipping_bytes": "collectives while gradients are bounded",
    "guard_bytes": "collectives of the rest of a step",
    "activation_bytes": "messages from stage to stage",
}
NO_SCORE = "not scored: its weights are random, for those of the published model are not public"
NO_BYTES = "not measured: virtual devices on one process exchange nothing"


class Settings(generate.Settings):
    """One cell: a dataset, a model, a number of devices, a clipping, an epsilon."""

    devices: int = Field(ge=1, description="Stages of the pipeline, a process each.")
    virtual: bool = Field(False, description="One process instead, with the groups that the stages would have.")
    schedule: Literal["gpipe", "1f1b"] = "gpipe"
    micro_batches: int | None = Field(None, ge=1, description="Of a physical batch; None: as many as devices.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the weights that are not trained.")
    score: bool = Field(True, description="false: random weights, made stage by stage; only steps are measured.")

    @property
    def pieces(self) -> int:
        """Micro-batches of a physical batch."""
        return self.micro_batches or self.devices

    @property
    def learnt(self) -> bool:
        return super().learnt or not self.score

    @model_validator(mode="after")
    def _stages(self) -> Settings:
        if self.tuning.mode not in ("full", "lora"):
            raise ValueError(f"tuning.mode {self.tuning.mode}: every stage must have something to train (full or lora)")
        if self.clipping is not None and self.clipping.devices is not None:
            raise ValueError("clipping.devices: the job's own devices say how many there are")
        if self.steps < COUNTED + 2:
            raise ValueError(f"steps {self.steps}: the first {COUNTED + 1} are not timed, so give more")
        if self.schedule == "1f1b" and self.pieces < self.devices:
            raise ValueError(f"1f1b on {self.devices} stages wants as many micro-batches, or more")
        if not self.score and (self.size is None or self.start is not None or self.virtual):
            raise ValueError("score: false is for a size with random weights, on real devices")
        return self


def run(settings: Settings, context: Context) -> Outcome:
    """Train, put the evaluated split's inputs into words, score; bytes and seconds of a step on the way.

    Raises:
        DpbenchError: no such device or fewer GPUs than stages, an engine that does not run in a pipeline, a package that scores
            is missing, the mechanism is out of reach, a guard of the engine stopped the run, or a process failed.
    """
    from dpbench.jobs import generation, piping
    from dpbench.metrics.text import require
    from dpbench.runner import privacy_of

    piping.require(settings)
    require()
    rows = generation.Task(settings, context) if settings.score else generation.Rows(settings, context)
    plan = settings.mechanism(len(rows), len(rows), context.seed)
    trained = piping.trained(settings, rows, plan, context)
    rates = [tokens / seconds for tokens, seconds in zip(trained.tokens, trained.seconds, strict=True)][COUNTED + 1 :]
    metrics = [
        over_rounds("throughput", "tokens/s", {}, rates),
        over_rounds("step_seconds", "s", {}, trained.seconds[COUNTED + 1 :]),
        *(_bytes(name, trained.per_example) for name in BYTES),
    ]
    facts = {"example": "one input with one text", "devices": settings.devices, "stages_are": piping.words(settings)}
    facts |= trained.facts | rows.facts
    if isinstance(rows, generation.Task):
        scored = generation.evaluate(rows, context)
        metrics += [metric(name, getattr(scored, name), "") for name in SCORES]
        metrics.append(metric("text_loss", generation.text_loss(rows), "nats"))
        facts |= {"evaluated_on": settings.evaluate_on, "samples": scored.samples, "outputs_sha256": scored.sha256}
        facts |= {"evaluated_inputs": len(scored.outputs), "different_outputs": len(set(scored.outputs))}
    else:
        metrics += [Metric(name=name, value=None, unit="", note=NO_SCORE) for name in (*SCORES, "text_loss")]
    warnings = [*trained.warnings, *settings.without_effect]
    return Outcome(metrics, plan.describe(), privacy_of(plan), facts, warnings=warnings, device=settings.device)


def _bytes(name: str, per_example: dict[str, float]) -> Metric:
    if name not in per_example:
        return Metric(name=name, value=None, unit="B", note=NO_BYTES)
    return metric(name, per_example[name], "B")


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its stages as groups, and the budget.

    Raises:
        DpbenchError: what a run would stop at, more stages than blocks among it.
    """
    from dpbench.jobs import generation, piping
    from dpbench.jobs.fitting import proven

    piping.require(settings, machine=False)
    model, count = generate.proof(settings, sources)
    optimizer = generation.optimizer(settings.optimizer, model)
    remarks = proven(settings.engine, model, optimizer, settings.mechanism_of(count), piping.whole(settings, model))
    return [*remarks, f"{settings.devices} {piping.words(settings)}", *piping.size_remarks(settings, model)]

"""Train a language model to put tables into words, and score what it writes for inputs it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from dpbench.data import described
from dpbench.data.coding import PUBLIC
from dpbench.jobs import starting
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.private import PrivateSettings
from dpbench.jobs.starting import Parents, Start
from dpbench.metrics.text import LEFT_OUT, require
from dpbench.models.language import language_model_family
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

if TYPE_CHECKING:
    from torch import nn

PLUGIN = {
    "kind": "job",
    "name": "generate",
    "version": 2,
    "summary": "train a language model on inputs and texts, and score what it writes for new inputs",
    "parents": ["language_model"],
}


class Optimizer(Strict):
    """AdamW on the released gradient."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"


class Tuning(Strict):
    """What is trained.

    layers: last blocks (`last_layers`); rank, alpha: of the adapters (`lora`); length, width: positions of the prefix, and the
    hidden layer that makes it, none where it is trained itself (`prefix`).
    """

    mode: Literal["full", "last_layers", "lora", "prefix"] = "full"
    layers: int = Field(2, ge=1)
    rank: int = Field(4, ge=1)
    alpha: float = Field(32.0, gt=0)
    length: int = Field(10, ge=1)
    width: int | None = Field(None, ge=1)


class Decoding(Strict):
    """How texts are generated. beams: 1 is greedy; rows: hypotheses at once."""

    beams: int = Field(1, ge=1)
    length_penalty: float = Field(1.0, ge=0)
    rows: int = Field(64, ge=1)


class Settings(PrivateSettings):
    """One cell: a dataset, a model, what is trained of it, an engine, an epsilon. An example is one input with one text."""

    dataset: str
    size: str | None = Field(None, description="Size of the GPT-2 or Llama family.")
    weights: str | None = Field(None, description="A model with published weights, in place of a size.")
    from_scratch: bool = Field(False, description="Random weights although there are published ones.")
    coding: Literal["words", "pieces", "own"] = Field(
        "pieces", description="How text becomes tokens, see dpbench.data.coding; own: as the model with published weights does."
    )
    vocabulary: int = Field(0, ge=0, description="pieces: tokens of the BPE; words: how many of the public text's words.")
    max_length: int = Field(100, ge=16, description="Tokens of input and text together; longer ones are cut.")
    tuning: Tuning = Tuning()
    start: Start | None = None
    delta: float | Literal["1/(2n)", "n^-1.1"] = 8e-6
    optimizer: Optimizer
    train_limit: int | None = Field(None, ge=1, description="Only the first so many examples.")
    evaluate_on: Literal["test", "validation", "train_rest"] = Field(
        "test", description="train_rest: inputs of the train split that are then not trained on; for choosing settings."
    )
    held_out: float = Field(0.05, gt=0, lt=1, description="Share of the train split's inputs that is its rest.")
    evaluate_limit: int | None = Field(None, ge=1, description="Only the first so many inputs.")
    decoding: Decoding = Decoding()
    samples: int = Field(5, ge=0, description="Best and worst outputs kept in the local record, so many of each.")
    token_budget: int = Field(8192, ge=16, description="Padded tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: float32 weights, products by autocast.")
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def positions(self) -> int:
        """That training and decoding reach: the prefix comes first."""
        return self.max_length + (self.tuning.length if self.tuning.mode == "prefix" else 0)

    @property
    def learnt(self) -> bool:
        """Whether training starts from a model that has learnt something."""
        return self.start is not None or (self.weights is not None and not self.from_scratch)

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if (self.size is None) == (self.weights is None):
            raise ValueError("exactly one of size and weights")
        if (self.weights is None) != (self.coding != "own"):
            raise ValueError("coding: own belongs to weights, and words and pieces to a size")
        if self.weights is None and self.from_scratch:
            raise ValueError("from_scratch says what to do with weights: a model of a size is from scratch already")
        if self.weights is not None and self.start is not None:
            raise ValueError("start pre-trains a model of a size; weights have been trained")
        if self.tuning.mode != "full" and not self.learnt:
            says = f"tuning.mode {self.tuning.mode} trains a part of a model that has learnt something"
            raise ValueError(f"{says}: give start or weights")
        if self.start is not None and self.coding != "pieces":
            raise ValueError("start: its model was trained on pieces, so coding must be pieces")
        if self.start is not None and self.start.tokens < self.positions:
            raise ValueError(f"start.tokens {self.start.tokens} is below the {self.positions} positions that are needed")
        return self


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    return Uses(tuple(settings.deciding_plugins), datasets=(settings.dataset, PUBLIC), models=(model_named(settings),))


def model_named(settings: Settings) -> str:
    """The model plug-in."""
    return settings.weights or language_model_family(str(settings.size))


def parents(settings: Settings, seed: int) -> Parents:
    """The public model first; it does not depend on the seed."""
    return starting.parents(
        settings.start, settings.size, settings.vocabulary, settings.token_budget, settings.precision, settings.device
    )


def run(settings: Settings, context: Context) -> Outcome:
    """Train, decode the inputs of the evaluated split, score.

    Raises:
        DpbenchError: no such device, a package that scores is missing, the mechanism is out of reach, or a guard of the engine
            stopped the run.
    """
    from dpbench.jobs import generation
    from dpbench.jobs.fitting import fit
    from dpbench.jobs.throughput import require_device
    from dpbench.runner import privacy_of

    require_device(settings.device)
    require()
    task = generation.Task(settings, context)
    task.quicken()
    plan = settings.mechanism(len(task), len(task), context.seed)
    stepper = generation.optimizer(settings.optimizer, task.model)
    fitted = fit(settings.engine, task, stepper, plan, context, settings.optimizer.schedule)
    scored = generation.evaluate(task, context)
    metrics = [metric("bleu", scored.bleu, ""), metric("rouge_l", scored.rouge_l, ""), metric("nist", scored.nist, "")]
    metrics += [Metric(name=name, value=None, unit="", note=why) for name, why in LEFT_OUT.items()]
    facts = {
        "example": "one input with one text",
        "evaluated_on": settings.evaluate_on,
        "evaluated_inputs": len(scored.outputs),
        "empty_outputs": sum(not text for text in scored.outputs),
        "different_outputs": len(set(scored.outputs)),
        "outputs_sha256": scored.sha256,
        "samples": scored.samples,
        **fitted.facts,
        **task.facts,
    }
    warnings = [*fitted.warnings, *settings.without_effect]
    return Outcome(metrics, plan.describe(), privacy_of(plan), facts, warnings=warnings, device=settings.device)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget."""
    from dpbench.jobs import generation
    from dpbench.jobs.fitting import proven

    model, count = proof(settings, sources)
    return proven(settings.engine, model, generation.optimizer(settings.optimizer, model), settings.mechanism_of(count))


def proof(settings: Settings, sources: dict[str, Source]) -> tuple[nn.Module, int]:
    """For a check: (the model on the meta device, the examples that the files at hand have, 0 if not known).

    Raises:
        DpbenchError: not a dataset of inputs and texts, or a file that does not have its schema.
    """
    from dpbench.data import registry as datasets
    from dpbench.data.coding import most_words
    from dpbench.jobs import generation

    described.require(settings.dataset)
    rows = {name: datasets.check(name, sources[f"dataset:{name}"]) for name in (settings.dataset, PUBLIC)}
    size = most_words(settings.dataset, settings.vocabulary) if settings.coding == "words" else settings.vocabulary
    model = generation.model_of(settings, size, sources[f"model:{model_named(settings)}"], meta=True)
    return model, min(rows[settings.dataset].get("train", 0), settings.train_limit or 10**12)

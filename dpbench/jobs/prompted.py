"""Prompt a language model: train it on how prompts go on, and measure how often it goes on right."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from dpbench.data import asked
from dpbench.data.coding import PUBLIC
from dpbench.jobs import rest, starting
from dpbench.jobs.classify import Zeroth
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.private import PrivateSettings, method_must_stand
from dpbench.jobs.starting import Parents
from dpbench.models.language import language_model_family
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

if TYPE_CHECKING:
    from dpbench.jobs.fitting import Fit
    from dpbench.jobs.stepping import ZerothFit

PLUGIN = {
    "kind": "job",
    "name": "prompted",
    "version": 1,
    "summary": "train a language model on prompts and score how it goes on: label words, or answers of its own",
    "parents": ["language_model"],
}

UNITS = {"loss": "nats"}
"""Of what is measured, where it is not per cent."""


class Optimizer(Strict):
    """How the released gradient is used."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"


class Start(starting.Start):
    """As there; how it is pre-trained is apart from how the run trains, so that runs of other jobs find the same one."""

    token_budget: int = Field(8192, ge=16, description="Tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = "float32"


class Settings(PrivateSettings):
    """One cell: a task, a model, a method, an epsilon. An example is one row: its prompt, and how it goes on."""

    takes_zeroth: ClassVar[bool] = True

    steps: int = Field(ge=0, description="0: the model is evaluated as it starts (zero-shot).")
    task: str = Field(description="A dataset with prompts, see dpbench.data.asked.")
    size: str | None = Field(None, description="Size of the GPT-2, Llama or OPT family.")
    weights: str | None = Field(None, description="A model with published weights, in place of a size.")
    vocabulary: int = Field(0, ge=0, description="Of a size: tokens of its BPE, which is made of public text.")
    start: Start | None = None
    tied: bool = Field(False, description="Whether the head is the token embedding.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of the weights.")
    label_words: dict[str, str] | None = Field(
        None, description="Class -> how a prompt goes on, its space first; none: the dataset's own."
    )
    loss: Literal["candidates", "tokens"] = Field(
        "candidates",
        description="Of a classification. candidates: cross entropy over the classes' mean log-likelihoods; tokens: that of the "
        "right words' own tokens, which is what answers always have.",
    )
    max_length: int = Field(ge=16, description="Tokens of a prompt and what follows; of a longer prompt the end is kept.")
    answer_length: int = Field(50, ge=2, description="Tokens of an answer, its end among them; longer ones are cut.")
    delta: float | Literal["1/(2n)", "n^-1.1"] = 1e-5
    optimizer: Optimizer
    zeroth: Zeroth | None = Field(None, description="Of a zeroth-order method, and only there.")
    train_limit: int | None = Field(None, ge=1, description="So many rows of the train split, which the seed chooses.")
    evaluate_on: Literal["validation", "train_rest"] = Field(
        "validation", description="train_rest: rows of the train split that the seed has not chosen; for choosing settings."
    )
    evaluate_limit: int | None = Field(None, ge=1)
    token_budget: int = Field(8192, ge=16, description="Padded tokens of a physical batch.")
    decoding_rows: int = Field(64, ge=1, description="Answers that are written at once.")
    device: Literal["cpu", "cuda"] = "cpu"
    chosen_by: rest.ChosenBy = rest.CHOSEN_BY

    @property
    def answers(self) -> bool:
        """Whether the model writes answers of its own, rather than one of the label words."""
        return asked.require(self.task)

    @property
    def by_choice(self) -> bool:
        """Whether the loss is over all candidates."""
        return not self.answers and self.loss == "candidates"

    @property
    def in_place(self) -> bool:
        """Whether no gradient is ever made."""
        return self.zeroth is not None or self.steps == 0

    @model_validator(mode="after")
    def _model(self) -> Settings:
        if (self.size is None) == (self.weights is None):
            raise ValueError("exactly one of size and weights")
        if self.weights is not None and (self.start is not None or self.vocabulary):
            raise ValueError("start and vocabulary belong to a size: weights have been trained, with a tokenizer of their own")
        if self.size is not None and not self.vocabulary:
            raise ValueError("vocabulary: a model of a size needs one")
        if self.start is not None and self.start.tokens < self.max_length:
            raise ValueError(f"start.tokens {self.start.tokens} is below max_length {self.max_length}")
        if self.start is not None and self.tied:
            raise ValueError("tied: the model that start pre-trains has a head of its own")
        for name, given in (("dtype", self.dtype != "float32"), ("tied", self.tied)):
            if given and not self.in_place:
                raise ValueError(f"{name} {getattr(self, name)}: for zeroth-order methods and steps: 0 alone")
        return self

    @model_validator(mode="after")
    def _method(self) -> Settings:
        if self.plugin.kind not in ("engine", "zeroth"):
            raise ValueError(f"engine {self.engine} is a paper's published code, which this job does not run")
        method_must_stand(self)
        return self

    @model_validator(mode="after")
    def _task(self) -> Settings:
        if self.answers:
            for name, given in (("label_words", self.label_words is not None), ("loss", self.loss != "candidates")):
                if given:
                    raise ValueError(f"{name}: {self.task} is answered in words of its own")
            if self.answer_length >= self.max_length:
                raise ValueError(
                    f"answer_length {self.answer_length} leaves no room for a prompt in max_length {self.max_length}"
                )
        else:
            asked.label_words(self.task, self.label_words)
        if self.evaluate_on == "train_rest" and self.train_limit is None:
            raise ValueError("evaluate_on: train_rest needs a train_limit, or nothing is left")
        chooses = self.train_limit is not None and (self.steps > 0 or self.evaluate_on == "train_rest")
        return rest.state_choice(self, chooses)


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    return Uses(tuple(settings.deciding_plugins), datasets=(settings.task, PUBLIC), models=(model_named(settings),))


def model_named(settings: Settings) -> str:
    """The model plug-in."""
    return settings.weights or language_model_family(str(settings.size))


def parents(settings: Settings, seed: int) -> Parents:
    """The public model first; it does not depend on the seed."""
    start = settings.start
    if start is None:
        return {}
    return starting.parents(start, settings.size, settings.vocabulary, start.token_budget, start.precision, settings.device)


def run(settings: Settings, context: Context) -> Outcome:
    """Train, and score how the evaluated prompts go on: accuracy, or F1 and exact match, and the loss of the evaluated rows.

    Raises:
        DpbenchError: no such device, label words without a token, the mechanism is out of reach, or a guard of the method stopped
            the run.
    """
    from dpbench.jobs import continuing
    from dpbench.jobs.throughput import require_device

    require_device(settings.device)
    task = continuing.Task(settings, context)
    curve = continuing.Curve(task, settings.steps, context)
    if settings.steps == 0:
        curve(0)
        metrics = [metric(name, value, UNITS.get(name, "%")) for name, value in curve.last.items()]
        return Outcome(metrics, facts=curve.facts | task.facts, warnings=task.warnings, device=settings.device)
    plan = settings.mechanism(len(task), len(task), context.seed)
    fitted: Fit | ZerothFit
    if settings.zeroth is not None:
        from dpbench.jobs.stepping import fit_zeroth

        own, chosen = settings.zeroth, settings.optimizer
        if not settings.answers:
            curve(0)  # the start
        fitted = fit_zeroth(
            settings.engine, task, plan, context, chosen.learning_rate, own.perturbation, own.directions, chosen.schedule, curve
        )
    else:
        from dpbench.jobs.fitting import fit

        stepper = continuing.optimizer(settings.optimizer, task.model)
        fitted = fit(settings.engine, task, stepper, plan, context, settings.optimizer.schedule, watch=curve)
    metrics = [metric(name, value, UNITS.get(name, "%")) for name, value in curve.last.items()]
    return Outcome(
        [*metrics, *fitted.metrics],
        plan.describe(),
        settings.privacy(plan),
        {"example": "one row: its prompt, and how it goes on", **curve.facts, **fitted.facts, **task.facts},
        warnings=[*fitted.warnings, *settings.without_effect, *task.warnings],
        device=settings.device,
    )


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget."""
    from dpbench.data import registry as datasets
    from dpbench.jobs import continuing
    from dpbench.jobs.fitting import proven

    rows = {name: datasets.check(name, sources[f"dataset:{name}"]) for name in (settings.task, PUBLIC)}
    model = continuing.model_of(settings, settings.vocabulary, sources[f"model:{model_named(settings)}"], meta=True)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
    if settings.steps == 0:
        return [f"{size}, evaluated as it starts"]
    count = rows[settings.task].get("train", 0)
    plan = settings.mechanism_of(min(count, settings.train_limit or count))
    if settings.zeroth is not None:
        return [f"{size}, two forward passes a step"]
    return proven(settings.engine, model, continuing.optimizer(settings.optimizer, model), plan)

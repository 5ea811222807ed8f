"""Train a text classifier: the whole encoder, or an MLP on a frozen encoder's features."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.jobs import rest
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.features import PUBLIC
from dpbench.jobs.private import PrivateSettings, method_must_stand
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.spec.sources import Source
from dpbench.validation import Strict

PLUGIN = {
    "kind": "job",
    "name": "classify",
    "version": 1,
    "summary": "train a text classifier and measure its accuracy",
    "parents": ["features"],
}

CURVE = {"features": 15, "full": 5}
"""Points of a learning curve: validation costs an MLP nothing, an encoder seconds."""


class Optimizer(Strict):
    """How the released gradient is used. head_learning_rate: for the head alone; None: the same."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0)
    head_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"


class Zeroth(Strict):
    """Of a zeroth-order method: lambda, and the law of its directions."""

    perturbation: float = Field(1e-3, gt=0, le=1)
    directions: Literal["gaussian", "sphere"] = "gaussian"


class Lora(Strict):
    """Low-rank adapters beside the attention's query and value products; the rest of the encoder is frozen."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)


class Settings(PrivateSettings):
    """One cell: a task, a model, a clipping, an epsilon. `engine` may be a zeroth-order method."""

    takes_zeroth: ClassVar[bool] = True

    steps: int = Field(ge=0, description="0: the model is evaluated as it starts (zero-shot).")
    task: str
    training: Literal["full", "features"]
    model: str
    layers: int | None = Field(None, ge=1)
    head: Literal["zero", "label_words", "prompt_words", "prompt"] = Field(
        "zero",
        description="How it starts. label_words: at features of public phrases; prompt_words: at those of the dataset's prompt, "
        "with each label word filled in; prompt: a masked language model's own, see dpbench.jobs.prompting.",
    )
    hidden: list[int] = Field(default_factory=list, description="Widths of the MLP between features and classes.")
    freeze_embeddings: bool = True
    centre: bool = Field(True, description="Subtract the mean feature of public text.")
    feature_norm: float | None = Field(None, gt=0, description="Bring every feature vector to this length.")
    feature_scale: float = Field(1.0, gt=0, description="Multiply features by this.")
    optimizer: Optimizer
    class_keep: dict[str, float] = Field(
        default_factory=dict,
        description="Class -> share of its training rows kept, by a rule that looks at one row alone (costs no privacy).",
    )
    max_length: int = Field(128, ge=4)
    token_budget: int = Field(2048, ge=16, description="Padded tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    evaluate_on: Literal["validation", "train_rest"] = Field(
        "validation",
        exclude_if=lambda v: v == "validation",
        description="train_rest: training rows that are then never drawn; for choosing settings.",
    )
    held_out: float = Field(
        rest.SHARE, gt=0, lt=1, exclude_if=lambda v: v == rest.SHARE, description="Share of the training rows that is their rest."
    )
    device: Literal["cpu", "cuda"] = "cpu"
    zeroth: Zeroth | None = Field(None, exclude_if=lambda v: v is None, description="Of a zeroth-order method, and only there.")
    lora: Lora | None = Field(None, exclude_if=lambda v: v is None)
    per_class: int | None = Field(
        None, ge=1, exclude_if=lambda v: v is None, description="k: training rows of each class; fewer where it has fewer."
    )
    evaluate_limit: int | None = Field(None, ge=1, exclude_if=lambda v: v is None)
    chosen_by: rest.ChosenBy = rest.CHOSEN_BY

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        method_must_stand(self)
        if self.zeroth is not None and self.optimizer.head_learning_rate is not None:
            raise ValueError(f"{self.engine} moves all weights along one direction: it has one learning rate")
        if self.head == "prompt" and (self.training == "features" or self.hidden):
            raise ValueError("head: prompt fills a mask inside the encoder: training full, without hidden layers")
        if self.head == "prompt" and (self.centre or self.feature_norm is not None or self.feature_scale != 1):
            raise ValueError("head: prompt takes no pooled features: centre: false, without feature_norm and feature_scale")
        if self.lora is not None and self.training == "features":
            raise ValueError("lora: a head on frozen features has no attention")
        if self.training == "features" and self.head in ("label_words", "prompt_words") and self.hidden:
            raise ValueError(f"head: {self.head} is a linear head: it takes no hidden layers")
        if self.evaluate_on == "validation" and "held_out" in self.model_fields_set:
            raise ValueError("held_out without evaluate_on: train_rest holds nothing out")
        if any(not 0 < share <= 1 for share in self.class_keep.values()):
            raise ValueError("class_keep: every share must lie above 0 and not above 1")
        return self

    @model_validator(mode="after")
    def _chosen(self) -> Settings:
        chooses = self.per_class is not None or any(share < 1 for share in self.class_keep.values())
        return rest.state_choice(self, self.training == "features" and chooses)


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    return Uses(plugins=tuple(settings.deciding_plugins), datasets=(settings.task, PUBLIC), models=(settings.model,))


def parents(settings: Settings, seed: int) -> dict[str, tuple[str, dict[str, Any], int, Resources]]:
    """Training on features needs them first; they do not depend on the seed."""
    if settings.training == "full":
        return {}
    wanted = {
        "task": settings.task,
        "model": settings.model,
        "layers": settings.layers,
        "max_length": settings.max_length,
        "precision": settings.precision,
        "train_limit": settings.train_limit,
        "device": settings.device,
        "evaluate_limit": settings.evaluate_limit,
    }
    # batches are small: two runs beside each other, a core each, are a third sooner than one after the other with two
    return {"features": ("features", wanted, 0, Resources(threads=1, minutes=4, mem_mb=4000))}


def run(settings: Settings, context: Context) -> Outcome:
    """Train, and measure accuracy on the validation split, or on the rest of the training rows: along the way, and at the end.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, or a guard of the engine stopped the run.
    """
    from dpbench.jobs import training
    from dpbench.jobs.fitting import Fit, fit
    from dpbench.jobs.stepping import ZerothFit, fit_zeroth
    from dpbench.jobs.throughput import require_device

    require_device(settings.device)
    task = (training.FeatureTask if settings.training == "features" else training.TextTask)(settings, context)
    curve = training.Curve(task, settings.steps, CURVE[settings.training])
    if settings.steps == 0:
        curve(0)
        facts = {"evaluated_rows": curve.rows, **task.facts}
        return Outcome([metric("accuracy", curve.points[-1][1], "%")], facts=facts, device=settings.device)
    plan = settings.mechanism(task.rows, len(task), context.seed)
    chosen = settings.optimizer
    fitted: Fit | ZerothFit
    if settings.zeroth is not None:
        own = settings.zeroth
        curve(0)  # the start
        published = settings.plugin.kind == "published_zeroth"
        fitted = fit_zeroth(
            settings.engine,
            task,
            plan,
            context,
            chosen.learning_rate,
            own.perturbation,
            own.directions,
            chosen.schedule,
            curve,
            published,
        )
    else:
        optimizer = training.optimizer(chosen, task.model)
        fitted = fit(settings.engine, task, optimizer, plan, context, chosen.schedule, watch=curve)
    facts = {
        "train_rows": task.rows,
        "rows_drawn_from": len(task),
        "evaluated_rows": curve.rows,
        "curve": curve.points,
        **fitted.facts,
        **task.facts,
    }
    return Outcome(
        [metric("accuracy", curve.points[-1][1], "%"), *settings.epsilon_metrics(plan), *fitted.metrics],
        plan.describe(),
        settings.privacy(plan),
        facts,
        warnings=[*fitted.warnings, *settings.without_effect, *task.warnings],
        device=settings.device,
    )


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget."""
    from dpbench.data import registry as datasets
    from dpbench.jobs import training
    from dpbench.jobs.fitting import proven

    rows = {name: datasets.check(name, sources[f"dataset:{name}"]) for name in (settings.task, PUBLIC)}
    model = training.meta_model(settings, sources).train()
    if settings.steps == 0:
        return ["evaluated as it starts"]
    count = rows[settings.task].get("train")
    if settings.per_class is not None and count:
        count = min(count, settings.per_class * len(plugins.get("dataset", settings.task).extra["classes"]))
    plan = settings.mechanism_of(count)
    if settings.zeroth is not None:
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return [f"{size / 1e6:.2f} M trainable parameters, two forward passes a step"]
    return proven(settings.engine, model, training.optimizer(settings.optimizer, model), plan)

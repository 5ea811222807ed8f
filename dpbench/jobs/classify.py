"""Train a text classifier: the whole encoder, or an MLP on a frozen encoder's features."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.jobs.clipping import GroupSettings
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.features import PUBLIC
from dpbench.mechanism import Clipping, Mechanism, Sampling, calibrated
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.spec.sources import Source
from dpbench.validation import Strict

PLUGIN = {"kind": "job", "name": "classify", "version": 1, "summary": "train a text classifier and measure its accuracy"}


class Optimizer(Strict):
    """How the released gradient is used. head_learning_rate: for the head alone; None: the same."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0)
    head_learning_rate: float | None = Field(None, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"


class ClippingSettings(GroupSettings):
    """See dpbench.mechanism.Clipping."""

    function: str
    scope: str = "flat"
    bound: float = 1.0
    gamma: float = 0.01

    @model_validator(mode="after")
    def _stands(self) -> ClippingSettings:
        if self.given is not None and self.bound != 1.0:
            raise ValueError(f"bound {self.bound:g} beside given thresholds: their hypotenuse is the bound")
        self.must_stand(function=self.function, scope=self.scope, gamma=self.gamma)
        return self

    def made(self) -> Clipping:
        """The mechanism's clipping."""
        return self.clipping_of(function=self.function, scope=self.scope, bound=self.bound, gamma=self.gamma)


class Settings(Strict):
    """One cell: a task, a model, a clipping, an epsilon."""

    task: str
    training: Literal["full", "features"]
    model: str
    layers: int | None = Field(None, ge=1)
    head: Literal["zero", "label_words"] = "zero"
    hidden: list[int] = Field(default_factory=list, description="Widths of the MLP between features and classes.")
    freeze_embeddings: bool = True
    centre: bool = Field(True, description="Subtract the mean feature of public text.")
    feature_norm: float | None = Field(None, gt=0, description="Bring every feature vector to this length.")
    feature_scale: float = Field(1.0, gt=0, description="Multiply features by this.")
    engine: str
    clipping: ClippingSettings | None = None
    epsilon: float | None = Field(None, gt=0)
    delta: float | Literal["1/(2n)", "n^-1.1"] = 1e-5
    relation: Literal["add_or_remove", "replace_one"] = "add_or_remove"
    sampler: Literal["poisson", "fixed"] = "poisson"
    steps: int = Field(ge=1)
    expected_batch_size: float = Field(gt=0)
    optimizer: Optimizer
    class_keep: dict[str, float] = Field(
        default_factory=dict,
        description="Class -> share of its training rows kept, by a rule that looks at one row alone (costs no privacy).",
    )
    max_length: int = Field(128, ge=4)
    token_budget: int = Field(2048, ge=16, description="Padded tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    caveats: list[str] = Field(default_factory=list, description="Reasons for which epsilon is only nominal.")

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        private = plugins.get("engine", self.engine).extra["private"]
        if private and (self.clipping is None or self.epsilon is None):
            raise ValueError(f"engine {self.engine} needs clipping and epsilon")
        if not private and (self.clipping is not None or self.epsilon is not None):
            raise ValueError(f"engine {self.engine} takes neither clipping nor epsilon")
        if self.training == "features" and self.head == "label_words" and self.hidden:
            raise ValueError("head: label_words is a linear head: it takes no hidden layers")
        if any(not 0 < share <= 1 for share in self.class_keep.values()):
            raise ValueError("class_keep: every share must lie above 0 and not above 1")
        return self


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    found = [("engine", settings.engine)]
    if settings.clipping is not None:
        found += [("function", settings.clipping.function), ("scope", settings.clipping.scope), *settings.clipping.policies]
    return Uses(plugins=tuple(found), datasets=(settings.task, PUBLIC), models=(settings.model,))


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
    }
    return {"features": ("features", wanted, 0, Resources(threads="all", minutes=3, mem_mb=6000))}


def mechanism(settings: Settings, rows: int, kept: int, seed: int) -> Mechanism:
    """The one object that sampler, noise and accountant are made from.

    Args:
        rows: of the dataset, for delta; kept: rows that can be drawn.
    """
    delta = {"1/(2n)": 1 / (2 * rows), "n^-1.1": rows**-1.1}.get(str(settings.delta)) or float(settings.delta)
    sampling = Sampling(settings.sampler, kept, min(settings.expected_batch_size, kept))
    if settings.clipping is None or settings.epsilon is None:
        return Mechanism(sampling, settings.steps, delta=delta, seed=seed)
    return calibrated(
        sampling,
        settings.steps,
        settings.clipping.made(),
        settings.epsilon,
        delta,
        relation=settings.relation,
        seed=seed,
        caveats=tuple(settings.caveats),
    )


def run(settings: Settings, context: Context) -> Outcome:
    """Train, then measure accuracy on the validation split.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, or a guard of the engine stopped the run.
    """
    from dpbench.jobs import training
    from dpbench.jobs.fitting import fit
    from dpbench.jobs.throughput import require_device
    from dpbench.runner import privacy_of

    require_device(settings.device)
    task = (training.FeatureTask if settings.training == "features" else training.TextTask)(settings, context)
    plan = mechanism(settings, task.rows, len(task), context.seed)
    optimizer = training.optimizer(settings.optimizer, task.model)
    fitted = fit(settings.engine, task, optimizer, plan, context, settings.optimizer.schedule)
    accuracy, rows = task.accuracy()
    facts = {"train_rows": task.rows, "rows_drawn_from": len(task), "evaluated_rows": rows, **fitted.facts, **task.facts}
    return Outcome(
        [metric("accuracy", 100 * accuracy, "%")],
        plan.describe(),
        privacy_of(plan),
        facts,
        warnings=[*fitted.warnings, *settings_without_effect(settings.clipping)],
        device=settings.device,
    )


def settings_without_effect(clipping: ClippingSettings | None) -> list[str]:
    """Warnings of a clipping's settings that its function does not read."""
    if clipping is not None and clipping.function != "auto_s" and "gamma" in clipping.model_fields_set:
        return [f"gamma has no effect under {clipping.function}"]
    return []


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget."""
    from dpbench import engines
    from dpbench.data import registry as datasets
    from dpbench.jobs import training

    rows = {name: datasets.check(name, sources[f"dataset:{name}"]) for name in (settings.task, PUBLIC)}
    count = rows[settings.task].get("train")
    model = training.meta_model(settings, sources)
    model.train()
    plan = mechanism(settings, count, count, 0) if count else _uncalibrated(settings)
    optimizer = training.optimizer(settings.optimizer, model)
    handle = engines.attach(settings.engine, model, optimizer, plan)
    if handle.unprotected:
        raise DpbenchError(f"engine {settings.engine} leaves {handle.unprotected[0]} unprotected")
    handle.detach()
    remarks = [f"{sum(p.numel() for p in handle.trainable.values()) / 1e6:.2f} M trainable parameters"]
    if plan.private and count:
        remarks.append(f"epsilon {plan.epsilon():.3f} at noise multiplier {plan.noise_multiplier:.3f}")
    return remarks


def _uncalibrated(settings: Settings) -> Mechanism:
    """For a dataset whose size is known only once it has been fetched."""
    sampling = Sampling(settings.sampler, int(settings.expected_batch_size), settings.expected_batch_size)
    clipping = settings.clipping.made() if settings.clipping else None
    return Mechanism(sampling, settings.steps, clipping)

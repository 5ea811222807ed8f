"""Train an image classifier from scratch, by any engine, with augmentation multiplicity and averaged weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.jobs.classify import ClippingSettings, mechanism, settings_without_effect
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.mechanism import Mechanism, Sampling
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

PLUGIN = {"kind": "job", "name": "image", "version": 1, "summary": "train an image classifier and measure its accuracy"}

EVALUATED = "test"


class Optimizer(Strict):
    """How the released gradient is used."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"

    @model_validator(mode="after")
    def _momentum_is_sgds(self) -> Optimizer:
        if self.name != "sgd" and self.momentum:
            raise ValueError("momentum is a setting of sgd")
        return self


class Augmentation(Strict):
    """Random copies of an image. An example's gradient is that of the mean loss over its copies, clipped once, so that copies
    cost time but no privacy (De et al., 2022, section 3.2)."""

    multiplicity: int = Field(1, ge=1, description="Copies of an image a step.")
    flip: bool = Field(True, description="Mirrored at random, left to right.")
    shift: int = Field(4, ge=0, description="Pixels: moved at random by at most so many, what comes in is reflected.")


class Settings(Strict):
    """One cell: a dataset, a model, a clipping, an epsilon."""

    task: str
    model: str
    engine: str
    clipping: ClippingSettings | None = None
    epsilon: float | None = Field(None, gt=0)
    delta: float | Literal["1/(2n)", "n^-1.1"] = 1e-5
    relation: Literal["add_or_remove", "replace_one"] = "add_or_remove"
    sampler: Literal["poisson", "fixed"] = "poisson"
    steps: int = Field(ge=1)
    expected_batch_size: float = Field(gt=0)
    optimizer: Optimizer
    augmentation: Augmentation | None = None
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an average of the weights over steps, which is what is evaluated."
    )
    physical: int = Field(256, ge=1, description="Images of a backward pass, before copies.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    train_evaluated: int = Field(2000, ge=1, description="Training images on which accuracy is measured too; not private.")
    device: Literal["cpu", "cuda"] = "cpu"
    caveats: list[str] = Field(default_factory=list, description="Reasons for which epsilon is only nominal.")

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        private = plugins.get("engine", self.engine).extra["private"]
        if private and (self.clipping is None or self.epsilon is None):
            raise ValueError(f"engine {self.engine} needs clipping and epsilon")
        if not private and (self.clipping is not None or self.epsilon is not None):
            raise ValueError(f"engine {self.engine} takes neither clipping nor epsilon")
        if "image" not in plugins.get("dataset", self.task).extra:
            raise ValueError(f"dataset {self.task} has no images")
        return self


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    found = [("engine", settings.engine)]
    if settings.clipping is not None:
        found += [("function", settings.clipping.function), ("scope", settings.clipping.scope), *settings.clipping.policies]
    return Uses(plugins=tuple(found), datasets=(settings.task,), models=(settings.model,))


def run(settings: Settings, context: Context) -> Outcome:
    """Train, then measure accuracy on the test split and on the first training images.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, or a guard of the engine stopped the run.
    """
    from dpbench.jobs.fitting import fit
    from dpbench.jobs.imaging import Average, ImageTask, optimizer
    from dpbench.jobs.throughput import require_device
    from dpbench.runner import privacy_of

    require_device(settings.device)
    task = ImageTask(settings, context)
    plan = mechanism(settings, len(task), len(task), context.seed)
    average = None if settings.ema is None else Average(task.model, settings.ema)
    fitted = fit(
        settings.engine,
        task,
        optimizer(settings.optimizer, task.model),
        plan,
        context,
        settings.optimizer.schedule,
        average.update if average is not None else lambda: None,
    )
    if average is not None:
        average.put_in()
    accuracy, rows = task.accuracy(EVALUATED)
    train_accuracy, _ = task.accuracy("train")
    facts = {"train_rows": len(task), "rows_drawn_from": len(task), "evaluated_rows": rows, **fitted.facts}
    return Outcome(
        [metric("accuracy", 100 * accuracy, "%"), metric("train_accuracy", 100 * train_accuracy, "%")],
        plan.describe(),
        privacy_of(plan),
        facts,
        warnings=[*fitted.warnings, *settings_without_effect(settings.clipping)],
        device=settings.device,
    )


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget."""
    from dpbench import engines
    from dpbench.data import registry as datasets
    from dpbench.jobs.imaging import model_of, optimizer

    count = datasets.check(settings.task, sources[f"dataset:{settings.task}"]).get("train")
    model = model_of(settings, meta=True).train()
    if count:
        count = min(count, settings.train_limit or count)
        plan = mechanism(settings, count, count, 0)
    else:
        plan = _uncalibrated(settings)
    handle = engines.attach(settings.engine, model, optimizer(settings.optimizer, model), plan)
    if handle.unprotected:
        raise DpbenchError(f"engine {settings.engine} leaves {handle.unprotected[0]} unprotected")
    handle.detach()
    remarks = [f"{sum(p.numel() for p in handle.trainable.values()) / 1e6:.2f} M trainable parameters"]
    if plan.private and count:
        remarks.append(f"epsilon {plan.epsilon():.3f} at noise multiplier {plan.noise_multiplier:.3f}")
    return remarks


def _uncalibrated(settings: Settings) -> Mechanism:
    """For a dataset whose size is known only once it has been fetched, or generated."""
    sampling = Sampling(settings.sampler, int(settings.expected_batch_size), settings.expected_batch_size)
    clipping = settings.clipping.made() if settings.clipping else None
    return Mechanism(sampling, settings.steps, clipping)

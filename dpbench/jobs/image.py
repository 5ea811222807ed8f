"""Train an image classifier, from scratch or on frozen features, by any engine, with augmentation and averaged weights."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.jobs import rest
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.private import PrivateSettings
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.spec.sources import Source
from dpbench.validation import Strict

PLUGIN = {
    "kind": "job",
    "name": "image",
    "version": 1,
    "summary": "train an image classifier and measure its accuracy",
    "parents": ["image_features"],
}


class Optimizer(Strict):
    """How the released gradient is used."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear"] = "constant"
    by_bound: bool = Field(
        False,
        exclude_if=lambda v: v is False,
        description="Keep the learning rate times the whole bound, whatever adaptive thresholds do: it falls as they grow.",
    )

    @model_validator(mode="after")
    def _are_sgds(self) -> Optimizer:
        if self.name != "sgd" and (self.momentum or self.by_bound):
            raise ValueError(f"{'momentum' if self.momentum else 'by_bound'} is a setting of sgd")
        return self


class Augmentation(Strict):
    """Random copies of an image. An example's gradient is that of the mean loss over its copies, clipped once, so that copies
    cost time but no privacy (De et al., 2022, section 3.2)."""

    multiplicity: int = Field(1, ge=1, description="Copies of an image a step.")
    flip: bool = Field(True, description="Mirrored at random, left to right.")
    shift: int = Field(4, ge=0, description="Pixels: moved at random by at most so many, what comes in is reflected.")


class Settings(PrivateSettings):
    """One cell: a dataset, a model, a clipping, an epsilon."""

    task: str
    model: str
    features: str | None = Field(
        None, exclude_if=lambda v: v is None, description="Frozen model whose features are trained on instead of pixels."
    )
    optimizer: Optimizer
    augmentation: Augmentation | None = None
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an average of the weights over steps, which is what is evaluated."
    )
    physical: int = Field(256, ge=1, description="Images of a backward pass, before copies.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    train_evaluated: int = Field(2000, ge=1, description="Training images on which accuracy is measured too; not private.")
    evaluate_on: Literal["test", "train_rest"] = Field(
        "test",
        exclude_if=lambda v: v == "test",
        description="train_rest: training images that are then never drawn; for choosing settings.",
    )
    held_out: float = Field(
        rest.SHARE,
        gt=0,
        lt=1,
        exclude_if=lambda v: v == rest.SHARE,
        description="Share of the training images that is their rest.",
    )
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if "image" not in plugins.get("dataset", self.task).extra:
            raise ValueError(f"dataset {self.task} has no images")
        if self.optimizer.by_bound and self.clipping is None:
            raise ValueError("by_bound needs clipping: without it there is no bound")
        if self.evaluate_on == "test" and "held_out" in self.model_fields_set:
            raise ValueError("held_out without evaluate_on: train_rest holds nothing out")
        if self.features is not None and self.augmentation is not None:
            raise ValueError("augmentation moves pixels, and features have none")
        if self.features is not None and self.evaluate_on == "train_rest":
            raise ValueError("evaluate_on: train_rest takes images apart by their pixels, and features have none")
        return self


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    return Uses(plugins=tuple(settings.deciding_plugins), datasets=(settings.task,), models=(settings.model,))


def parents(settings: Settings, seed: int) -> dict[str, tuple[str, dict[str, Any], int, Resources]]:
    """Training on features needs them first; they do not depend on the seed."""
    if settings.features is None:
        return {}
    wanted = {
        "task": settings.task,
        "model": settings.features,
        "train_limit": settings.train_limit,
        "device": settings.device,
    }
    return {"features": ("image_features", wanted, 0, Resources(threads=1, minutes=2, mem_mb=3000))}


def run(settings: Settings, context: Context) -> Outcome:
    """Train, then measure accuracy on the evaluated images and on the first training images.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, or a guard of the engine stopped the run.
    """
    from dpbench.jobs.fitting import fit
    from dpbench.jobs.imaging import Average, ImageTask, optimizer
    from dpbench.jobs.throughput import require_device
    from dpbench.runner import privacy_of

    require_device(settings.device)
    task = ImageTask(settings, context)
    plan = settings.mechanism(len(task), len(task), context.seed)
    average = None if settings.ema is None else Average(task.model, settings.ema)
    fitted = fit(
        settings.engine,
        task,
        optimizer(settings.optimizer, task.model),
        plan,
        context,
        settings.optimizer.schedule,
        average.update if average is not None else lambda: None,
        settings.optimizer.by_bound,
    )
    if average is not None:
        average.put_in()
    accuracy, rows = task.accuracy(settings.evaluate_on)
    train_accuracy, _ = task.accuracy("train")
    facts = {"train_rows": len(task), "rows_drawn_from": len(task), "evaluated_rows": rows, **fitted.facts}
    return Outcome(
        [metric("accuracy", 100 * accuracy, "%"), metric("train_accuracy", 100 * train_accuracy, "%"), *fitted.metrics],
        plan.describe(),
        privacy_of(plan),
        facts,
        warnings=[*fitted.warnings, *settings.without_effect],
        device=settings.device,
    )


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget."""
    from dpbench.data import registry as datasets
    from dpbench.jobs.fitting import proven
    from dpbench.jobs.imaging import model_of, optimizer

    count = datasets.check(settings.task, sources[f"dataset:{settings.task}"]).get("train")
    model = model_of(settings, meta=True).train()
    plan = settings.mechanism_of(min(count, settings.train_limit or count) if count else None)
    return proven(settings.engine, model, optimizer(settings.optimizer, model), plan)

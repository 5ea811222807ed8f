"""Settings of an image classifier. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.execution.contract import Parents
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.tasks import holdout
from dpbench.training.config import TrainingSettings
from dpbench.validation import Strict, omitted


class AugmentationSettings(Strict):
    """Random copies of an image. An example's gradient is that of the mean loss over its copies, clipped once, so that copies
    cost time but no privacy (De et al., 2022, section 3.2)."""

    multiplicity: int = Field(1, ge=1, description="Copies of an image a step.")
    flip: bool = Field(True, description="Mirrored at random, left to right.")
    shift: int = Field(4, ge=0, description="Pixels: moved at random by at most so many, what comes in is reflected.")


class Settings(TrainingSettings):
    """One cell: a dataset, a model, a clipping, an epsilon."""

    dataset: str
    model: str
    features: str | None = omitted(description="Frozen model whose features are trained on instead of pixels.")
    augmentation: AugmentationSettings | None = None
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an average of the weights over steps, which is what is evaluated."
    )
    physical: int = Field(256, ge=1, description="Images of a backward pass, before copies.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    train_evaluated: int = Field(2000, ge=1, description="Training images on which accuracy is measured too; not private.")
    evaluate_on: Literal["test", "train_rest"] = omitted(
        "test", description="train_rest: training images that are then never drawn; for choosing settings."
    )
    held_out: float = holdout.HELD_OUT

    @model_validator(mode="after")
    def _fits_the_images(self) -> Settings:
        if "image" not in plugins.get("dataset", self.dataset).extra:
            raise ValueError(f"dataset {self.dataset} has no images")
        if self.evaluate_on == "test" and "held_out" in self.model_fields_set:
            raise ValueError("held_out without evaluate_on: train_rest holds nothing out")
        if self.features is not None and self.augmentation is not None:
            raise ValueError("augmentation moves pixels, and features have none")
        if self.features is not None and self.evaluate_on == "train_rest":
            raise ValueError("evaluate_on: train_rest chooses images by their pixels, and features have none")
        return self


def uses(settings: Settings) -> Uses:
    """Return versions and sources that decide the numbers."""
    return Uses(plugins=tuple(settings.deciding_plugins), datasets=(settings.dataset,), models=(settings.model,))


def parents(settings: Settings, seed: int) -> Parents:
    """Return the run of features that training on them reads; they do not depend on the seed."""
    if settings.features is None:
        return {}
    shared = {name: getattr(settings, name) for name in ("dataset", "train_limit", "device")} | {"model": settings.features}
    return {"features": ("image_features", shared, 0, Resources(threads=1, minutes=2, mem_mb=3000))}

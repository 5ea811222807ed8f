"""What a frozen model makes of a dataset's images, computed once and shared by every run that trains on it."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.data import registry as datasets
from dpbench.execution.contract import Context, Outcome
from dpbench.execution.environment import require_device
from dpbench.models import registry as models
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.tasks.checking import checked_rows
from dpbench.tasks.features import outcome_of
from dpbench.validation import Strict

SPLITS = ("train", "test")
_TOGETHER = 8  # images of a forward pass: their intermediate values stay in cache


class FeatureSettings(Strict):
    """Which frozen model on which images. Features are not private: only what is trained on them is."""

    dataset: str
    model: str
    train_limit: int | None = Field(None, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _of_images(self) -> FeatureSettings:
        if "image" not in plugins.get("dataset", self.dataset).extra:
            raise ValueError(f"dataset {self.dataset} has no images")
        return self


def uses(settings: FeatureSettings) -> Uses:
    """Return what decides the numbers. The model has no weights, so that it comes from nowhere: its version says all."""
    return Uses(plugins=(("model", settings.model),), datasets=(settings.dataset,))


def images_of(dataset: str, split: str, source: Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a split, and their labels or attributes."""
    columns = datasets.load(dataset, split, source, limit).columns
    return columns["image"], np.asarray(columns["labels" if "labels" in columns else "label"])


def run(settings: FeatureSettings, context: Context) -> Outcome:
    """Write the file: features fp16 [N, C, H, W] and labels of the training and test images; measure images a second.

    Raises:
        DpbenchError: no such device, or images of a size that the model does not take; what loading them raises.
    """
    import torch

    from dpbench.tasks.image_classification.augmentation import scaled

    device = require_device(settings.device)
    image = plugins.get("dataset", settings.dataset).extra["image"]
    model = models.image_features(settings.model, image).to(device).eval()
    shape = models.image_features_shape(settings.model, image)
    begun = time.perf_counter()
    tensors, counts = {}, {}
    source = context.sources[f"dataset:{settings.dataset}"]
    limits = {"train": settings.train_limit}
    # All splits before the first is worked on, so that a bad image of the last costs no time.
    loaded = {split: images_of(settings.dataset, split, source, limits.get(split)) for split in SPLITS}
    for split, (images, labels) in loaded.items():
        pixels = torch.from_numpy(images)
        features = torch.empty(len(pixels), shape["channels"], shape["height"], shape["width"], dtype=torch.float16)
        with torch.inference_mode():
            for start in range(0, len(pixels), _TOGETHER):
                rows = slice(start, start + _TOGETHER)
                features[rows] = model(scaled(pixels[rows].to(device))).half().cpu()
                if start % (64 * _TOGETHER) == 0:
                    context.report(start, len(pixels), f"{split} features")
        tensors[f"{split}_x"], tensors[f"{split}_y"] = features, torch.as_tensor(labels)
        counts[split] = len(pixels)
    return outcome_of(context, tensors, {"rows": counts, "shape": shape}, time.perf_counter() - begun, settings.device)


def check(settings: FeatureSettings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, and that the model takes the images."""
    rows = checked_rows(settings, sources)
    shape = models.image_features_shape(settings.model, plugins.get("dataset", settings.dataset).extra["image"])
    width = shape["channels"] * shape["height"] * shape["width"]
    return [f"{settings.dataset}: {rows or 'rows not known before they are fetched'}, {width:,} features each"]

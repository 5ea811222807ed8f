"""What a frozen model makes of a dataset's images, computed once and shared by every run that trains on it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.execution.contract import Context
from dpbench.spec.expand import Uses
from dpbench.tasks.features import FILE
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


def extract(settings: FeatureSettings, context: Context) -> tuple[dict[str, Any], float]:
    """Write `FILE`: features fp16 [N, C, H, W] and labels of the training and test images; return (facts, seconds).

    Raises:
        DpbenchError: images of a size that the model does not take; what loading them raises.
    """
    import time

    import torch
    from safetensors.torch import save_file

    from dpbench.data import registry as datasets
    from dpbench.models import registry as models
    from dpbench.tasks.image_classification.augmentation import scaled

    image = plugins.get("dataset", settings.dataset).extra["image"]
    model = models.image_features(settings.model, image).to(settings.device).eval()
    shape = models.image_features_shape(settings.model, image)
    begun = time.perf_counter()
    tensors, counts = {}, {}
    source = context.sources[f"dataset:{settings.dataset}"]
    limits = {"train": settings.train_limit}
    # All splits before the first is worked on, so that a bad image of the last costs no time.
    loaded = {split: datasets.load(settings.dataset, split, source, limits.get(split)).columns for split in SPLITS}
    for split, columns in loaded.items():
        pixels = torch.from_numpy(columns["image"])
        features = torch.empty(len(pixels), shape["channels"], shape["height"], shape["width"], dtype=torch.float16)
        with torch.inference_mode():
            for start in range(0, len(pixels), _TOGETHER):
                rows = slice(start, start + _TOGETHER)
                features[rows] = model(scaled(pixels[rows].to(settings.device))).half().cpu()
                if start % (64 * _TOGETHER) == 0:
                    context.report(start, len(pixels), f"{split} features")
        labels = torch.as_tensor(columns["labels" if "labels" in columns else "label"])
        tensors[f"{split}_x"], tensors[f"{split}_y"] = features, labels
        counts[split] = len(pixels)
    seconds = time.perf_counter() - begun
    save_file(tensors, context.out / FILE)
    return {"rows": counts, "shape": shape}, seconds

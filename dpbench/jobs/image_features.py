"""Compute a frozen model's features of a dataset's images."""

from __future__ import annotations

from dpbench import plugins
from dpbench.execution.contract import Context, Outcome
from dpbench.spec.sources import Source
from dpbench.tasks.features import extracted
from dpbench.tasks.image_classification.features import FeatureSettings as Settings
from dpbench.tasks.image_classification.features import extract, uses

__all__ = ["Settings", "check", "run", "uses"]

PLUGIN = {"kind": "job", "name": "image_features", "version": 1, "summary": "features of images by a frozen model"}


def run(settings: Settings, context: Context) -> Outcome:
    """Write the features, and measure how many images a second they take.

    Raises:
        DpbenchError: no such device, or images of a size that the model does not take.
    """
    return extracted(extract, settings, context)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema, and that the model takes the images."""
    from dpbench.models import registry as models
    from dpbench.tasks.checking import checked_rows

    rows = checked_rows(settings, sources)
    shape = models.image_features_shape(settings.model, plugins.get("dataset", settings.dataset).extra["image"])
    width = shape["channels"] * shape["height"] * shape["width"]
    return [f"{settings.dataset}: {rows or 'rows not known before they are fetched'}, {width:,} features each"]

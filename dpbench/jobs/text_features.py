"""Compute a frozen encoder's features of a classification dataset."""

from __future__ import annotations

from dpbench.execution.contract import Context, Outcome
from dpbench.spec.sources import Source
from dpbench.tasks.features import extracted
from dpbench.tasks.text_classification.features import FeatureSettings as Settings
from dpbench.tasks.text_classification.features import extract, uses

__all__ = ["Settings", "check", "run", "uses"]

PLUGIN = {"kind": "job", "name": "text_features", "version": 1, "summary": "pooled features of a frozen encoder"}


def run(settings: Settings, context: Context) -> Outcome:
    """Write the features, and measure how many rows a second they take.

    Raises:
        DpbenchError: no such device; what loading data and weights raises.
    """
    return extracted(extract, settings, context)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema and the model on the meta device."""
    from dpbench.models import registry as models
    from dpbench.tasks.checking import checked_rows

    rows = checked_rows(settings, sources)
    models.encoder(settings.model, sources[f"model:{settings.model}"], settings.layers, meta=True)
    return [f"{settings.dataset}: {rows or 'rows not known before they are fetched'}"]

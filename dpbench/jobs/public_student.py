"""Distil a public encoder into one of fewer layers, on public text."""

from __future__ import annotations

from dpbench.compression.public_student import Settings, distil, uses
from dpbench.data.public import PUBLIC
from dpbench.execution.contract import Context, Outcome, metric
from dpbench.spec.sources import Source

__all__ = ["Settings", "check", "run", "uses"]

PLUGIN = {
    "kind": "job",
    "name": "public_student",
    "version": 1,
    "summary": "distil an encoder into one of fewer layers on public text",
}


def run(settings: Settings, context: Context) -> Outcome:
    """Distil, and measure the loss of the last step.

    Raises:
        DpbenchError: no such device; what loading data and weights raises.
    """
    loss, facts, files = distil(settings, context)
    return Outcome([metric("loss", loss, "")], facts=facts, artefacts=files, device=settings.device)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema and the model on the meta device."""
    from dpbench.data import registry as datasets
    from dpbench.models import registry as models

    datasets.check(PUBLIC, sources[f"dataset:{PUBLIC}"])
    models.encoder(settings.model, sources[f"model:{settings.model}"], settings.layers, meta=True)
    return [f"layers {', '.join(map(str, settings.kept))} of {settings.model}, {settings.steps} steps on public text"]

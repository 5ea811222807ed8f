"""Time the inference of encoders on the CPU, all in turn in one run: latency of one example, throughput of a batch."""

from __future__ import annotations

from pydantic import Field

from dpbench.execution.contract import Context, Outcome, over_rounds
from dpbench.measure.rounds import seconds_per_call
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict


class Shape(Strict):
    """A model whose inference is timed."""

    model: str
    layers: int = Field(ge=1)


class Settings(Strict):
    """How inference is timed on the CPU: all shapes in turn in one run, shared by every run that names the same.

    Weights are random: time does not depend on their values; zeros take as long as any number.
    """

    shapes: list[Shape] = Field(min_length=1)
    tokens: int = Field(32, ge=2, description="T of every example.")
    batch_size: int = Field(32, ge=1, description="Examples at once, for throughput; latency is of one.")
    rounds: int = Field(15, ge=1)


def uses(settings: Settings) -> Uses:
    """Return the versions of the models; their weights are not read."""
    return Uses(plugins=tuple(("model", name) for name in dict.fromkeys(s.model for s in settings.shapes)))


def run(settings: Settings, context: Context) -> Outcome:
    """Time every shape once a round, in turn; the first round is a warm-up and left out."""
    from functools import partial

    import torch

    from dpbench.models import registry as models

    scratch = Source(kind="scratch", synthetic=True)
    encoders = [models.encoder(shape.model, scratch, shape.layers).eval() for shape in settings.shapes]
    one, many = (torch.ones(n, settings.tokens, dtype=torch.long) for n in (1, settings.batch_size))

    latency: list[list[float]] = [[] for _ in encoders]
    throughput: list[list[float]] = [[] for _ in encoders]
    with torch.inference_mode():
        for number in range(settings.rounds + 1):
            for k, encoder in enumerate(encoders):
                slow = seconds_per_call(partial(encoder, one, torch.ones_like(one)), 5)
                fast = seconds_per_call(partial(encoder, many, torch.ones_like(many)), 1)
                if number:
                    latency[k].append(1e3 * slow)
                    throughput[k].append(settings.batch_size / fast)
            context.report(number, settings.rounds, "inference")
            context.steps.write(step=number, latency_ms=[round(v[-1], 4) for v in latency] if number else None)
    metrics = []
    for shape, milliseconds, rates in zip(settings.shapes, latency, throughput, strict=True):
        labels = {"model": shape.model, "layers": str(shape.layers)}
        metrics.append(over_rounds("latency", "ms", labels, milliseconds))
        metrics.append(over_rounds("throughput", "examples/s", labels, rates))
    return Outcome(metrics, facts={"threads": context.threads, "tokens": settings.tokens, "batch_size": settings.batch_size})


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Check a run without running it: build the models on the meta device."""
    from dpbench.models import registry as models

    for shape in settings.shapes:
        models.encoder(shape.model, Source(kind="scratch"), shape.layers, meta=True)
    return [f"{len(settings.shapes)} shapes in turn, {settings.rounds} rounds"]

"""The error of the simulated peak memory of a step against the measured one, on this machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpbench.execution.contract import Context, Outcome
from dpbench.execution.environment import require_device
from dpbench.measure import throughput
from dpbench.measure.memory import measure_memory
from dpbench.measure.rounds import split_missing
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

UNITS = {"measured": "MiB", "simulated": "MiB", "error": "%"}


class Settings(Strict):
    """Settings of a step that can run on this machine."""

    dataset: str = "wikitext2"
    size: str = Field(description="Size of the GPT-2 or Llama family.")
    tokens: int = Field(ge=2, description="T, tokens an example.")
    batch_size: int = Field(ge=1, description="B, examples a step.")
    methods: list[str] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions and sources of the measured step."""
    return throughput.uses(_timing(settings))


def _timing(settings: Settings) -> throughput.Settings:
    rate = 5e-3  # moves a bfloat16 weight of 1 too; no byte depends on it
    return throughput.Settings(**settings.model_dump(), learning_rate=rate)


def run(settings: Settings, context: Context) -> Outcome:
    """Measure every engine in a fresh process, simulate the same step, and compare.

    Raises:
        DpbenchError: there is no such device; an engine cannot be simulated.
    """
    from dpbench.simulate.devices import DEVICES
    from dpbench.simulate.step import Setting, step

    timing = _timing(settings)
    require_device(settings.device)
    ids, facts = throughput.batch_ids(timing, context.sources[f"dataset:{settings.dataset}"])
    runnable, reasons = split_missing(settings.methods)
    metrics = [_metric(engine, name, None, why) for engine, why in reasons.items() for name in UNITS]
    workspace = DEVICES["h100_80"].workspace if _hopper(settings.device) else DEVICES["a100_80"].workspace
    for done, (engine, peaks_or_reason) in enumerate(measure_memory(timing, runnable, ids, context)):
        context.report(done, len(runnable), f"memory of {engine}")
        setting = Setting(
            settings.size,
            engine,
            timing.mechanism(engine),
            settings.tokens,
            settings.batch_size,
            dtype=settings.dtype,
            device=settings.device,
        )
        simulated = step(setting).peak + (workspace if settings.device == "cuda" else 0)
        if isinstance(peaks_or_reason, str):
            metrics += [_metric(engine, name, None, peaks_or_reason) for name in ("measured", "error")]
        else:
            measured = max(peaks_or_reason["tensors"])
            metrics.append(_metric(engine, "measured", measured / 2**20))
            metrics.append(_metric(engine, "error", 100 * (simulated / measured - 1)))
        metrics.append(_metric(engine, "simulated", simulated / 2**20))
    return Outcome(metrics, facts=facts, device=settings.device)


def _hopper(device: str) -> bool:
    import torch

    return device == "cuda" and torch.cuda.get_device_capability()[0] == 9


def _metric(engine: str, name: str, value: float | None, note: str = "") -> Metric:
    kind: Literal["measured", "simulated"] = "measured" if name == "measured" else "simulated"
    return Metric(name=name, value=value, unit=UNITS[name], labels={"engine": engine}, kind=kind, note=note)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Check the measured step without running it."""
    return throughput.check(_timing(settings), sources)

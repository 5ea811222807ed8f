"""Whether a training step fits a device, how large its batch may be, and its speed by a roofline, without a GPU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from dpbench.execution.contract import Context, Outcome
from dpbench.measure import throughput
from dpbench.measure.rounds import unmeasured
from dpbench.methods import timing
from dpbench.models.language import language_model_family
from dpbench.records.schema import Metric
from dpbench.simulate.devices import Device, device
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict, parse

if TYPE_CHECKING:
    from dpbench.simulate.scale import Estimate
    from dpbench.simulate.step import Setting


UNITS = {"largest_batch": "examples", "peak_memory": "MiB", "device_memory": "MiB", "memory_ratio": "x", "throughput_ratio": "x"}


class Settings(Strict):
    """Settings: a model and a length; every engine is simulated on every device."""

    size: str = Field(description="Size of the GPT-2, Llama or OPT family.")
    tokens: int = Field(ge=2, description="T, tokens an example.")
    batch_size: int = Field(8, ge=1, description="B, examples a step, for peak memory and the ratios.")
    methods: list[str] = Field(min_length=1, description="Engines, zeroth-order methods, or inference: a forward pass alone.")
    devices: list[str] = Field(min_length=1, description="Sheets of dpbench/simulate/devices.py.")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    tied: bool = False
    whole: bool = Field(False, description="Every block, instead of extrapolating from two and three.")

    @field_validator("devices")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            device(name)
        return value


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions that determine the numbers; there is no data."""
    timing = _timing(settings)
    return Uses(plugins=throughput.uses(timing).plugins, models=(language_model_family(settings.size),))


def _timing(settings: Settings) -> throughput.Settings:
    return throughput.Settings(
        size=settings.size, tokens=settings.tokens, batch_size=settings.batch_size, methods=settings.methods, dtype=settings.dtype
    )


def run(settings: Settings, context: Context) -> Outcome:
    """Simulate engine by engine.

    Raises:
        DpbenchError: an engine cannot be simulated; the error names it.
    """
    from dpbench.simulate.scale import BATCHES, estimate

    sheets = {name: device(name) for name in settings.devices}
    metrics: list[Metric] = []
    baseline: Estimate | None = None
    total = len(settings.methods)
    for done, engine in enumerate(settings.methods):
        context.report(done, total, f"simulating {engine}")
        if missing := timing.missing(engine):
            for where in settings.devices:
                metrics += unmeasured(UNITS, {"engine": engine, "device": where}, f"skipped: {missing}", "simulated")
            continue
        estimates = {}
        for batch in sorted({*BATCHES, settings.batch_size}):
            estimates[batch] = estimate(_setting(settings, engine, batch), list(sheets.values()), settings.whole)
            context.steps.write(engine=engine, batch_size=batch, peak_bytes=estimates[batch].peak, flops=estimates[batch].flops)
        if engine == throughput.BASELINE:
            baseline = estimates[settings.batch_size]
        metrics += _metrics(settings, engine, estimates, baseline)
    facts = {"devices": {name: vars(sheet) for name, sheet in sheets.items()}, "batches": list(BATCHES)}
    return Outcome(metrics, facts=facts)


def _setting(settings: Settings, engine: str, batch: int) -> Setting:
    from dpbench.simulate.step import Setting

    timing = _timing(settings).model_copy(update={"batch_size": batch})
    mechanism = timing.mechanism(engine)
    return Setting(settings.size, engine, mechanism, settings.tokens, batch, dtype=settings.dtype, tied=settings.tied)


def _metrics(settings: Settings, engine: str, estimates: dict[int, Estimate], baseline: Estimate | None) -> list[Metric]:
    from dpbench.simulate.scale import largest_batch

    chosen = estimates[settings.batch_size]
    peaks = {batch: estimate.peak for batch, estimate in estimates.items()}
    metrics = []
    for name in settings.devices:
        sheet = device(name)
        note = "float16 rates: no bfloat16 in hardware" if settings.dtype == "bfloat16" and not sheet.bfloat16 else ""
        values: dict[str, float] = {"largest_batch": largest_batch(peaks, sheet.usable), "peak_memory": chosen.peak / 2**20}
        if baseline is not None:
            values["memory_ratio"] = chosen.peak / baseline.peak
            values["throughput_ratio"] = baseline.seconds[sheet.name] / chosen.seconds[sheet.name]
        labels = {"engine": engine, "device": name}
        metrics += [
            Metric(name=key, value=value, unit=UNITS[key], labels=labels, kind="simulated", note=note)
            for key, value in values.items()
        ]
        metrics.append(_on_device(chosen.peak, sheet, labels, note))
    return metrics


def _on_device(peak: float, sheet: Device, labels: dict[str, str], note: str) -> Metric:
    """Return the memory that the device's tool shows, with driver, context and workspace; OOM where the device has less."""
    needed, available = (peak + sheet.memory - sheet.usable) / 2**20, sheet.memory / 2**20
    fits = needed <= available
    return Metric(
        name="device_memory",
        value=needed if fits else None,
        unit="MiB",
        labels=labels,
        kind="simulated",
        note=note if fits else f"OOM: {needed:.0f} MiB of {available:.0f}",
        text="" if fits else "OOM",
    )


def printed(arguments: dict[str, Any]) -> str:
    """Run a simulation with the arguments of the command line and return it as lines of text.

    Raises:
        DpbenchError: a size, engine or device is unknown; an engine cannot be simulated.
    """
    import tempfile
    from contextlib import closing
    from pathlib import Path

    from dpbench.execution.tracking import StepLog

    settings = parse(Settings, arguments, "simulate")
    language_model_family(settings.size)
    with tempfile.TemporaryDirectory() as folder, closing(StepLog(Path(folder) / "steps.jsonl")) as steps:
        metrics = run(settings, Context(Path(folder), 0, {}, steps)).metrics
    digits = {"largest_batch": 0, "peak_memory": 0, "device_memory": 0, "memory_ratio": 3, "throughput_ratio": 3}
    lines = ["simulated, not measured", "{:14}{:14}".format("engine", "device") + "".join(f"{n:>18}" for n in UNITS)]
    for engine, where in itertools.product(settings.methods, settings.devices):
        metric_of_name = {m.name: m for m in metrics if m.labels == {"engine": engine, "device": where}}
        shown = [
            "-" if n not in metric_of_name or (v := metric_of_name[n].value) is None else f"{v:.{digits[n]}f}" for n in UNITS
        ]
        lines.append(f"{engine:14}{where:14}" + "".join(f"{text:>18}" for text in shown))
    notes = dict.fromkeys(f"{m.labels['engine']} on {m.labels['device']}: {m.note}" for m in metrics if m.note)
    return "\n".join([*lines, *notes])


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Check a run without running it: attach every engine to the model without storage."""
    return throughput.check(_timing(settings), sources)

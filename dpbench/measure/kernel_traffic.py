"""Bytes moved and FLOPs of a linear layer's training step under each engine: counted, and on a GPU also timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dpbench import plugins
from dpbench.execution.contract import Context, Outcome, over_rounds
from dpbench.execution.environment import require_device
from dpbench.measure.config import BASELINE
from dpbench.measure.rounds import seconds_per_call, split_missing, unmeasured, wait_for
from dpbench.methods import timing
from dpbench.privacy.mechanism import Clipping, Mechanism
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dpbench.simulate.cost import Work


UNITS = {"bytes_moved": "MiB", "bytes_ratio": "x", "flops": "GFLOP", "flops_ratio": "x", "time": "ms"}


class Settings(Strict):
    """Settings of a linear layer with bias, its input and its batch."""

    inputs: int = Field(ge=1, description="I, width of the input.")
    outputs: int = Field(ge=1, description="O, width of the output.")
    tokens: int = Field(ge=1, description="T, tokens an example.")
    batch_size: int = Field(8, ge=1, description="B, examples.")
    engines: list[str] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where it is timed: only a GPU is; what is counted is a GPU's way.")
    rounds: int = Field(20, ge=1, description="Timed steps on a GPU, engines in turn.")


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions that determine the numbers; there is no data."""
    scopes = dict.fromkeys(s for s in map(timing.scope_of, settings.engines) if s)
    engines = tuple(("engine", name) for name in settings.engines)
    return Uses(plugins=(*engines, *(("scope", s) for s in scopes), ("function", "abadi")))


def mechanism(settings: Settings, engine: str) -> Mechanism:
    """Return a mechanism that clips with the engine's first scope, with noise multiplier 1 and a fixed batch."""
    scope = timing.scope_of(engine)
    return timing.mechanism_of(settings.batch_size, Clipping(scope=scope) if scope else None)


def run(settings: Settings, context: Context) -> Outcome:
    """Count every engine's step; on a GPU time it too.

    Raises:
        DpbenchError: there is no such device.
    """
    require_device(settings.device)
    runnable, reasons = split_missing(settings.engines)
    metrics = [m for engine, why in reasons.items() for m in unmeasured(UNITS, {"engine": engine}, why, "counted")]
    counted = {}
    for done, engine in enumerate(runnable):
        context.report(done, len(runnable), f"counting {engine}")
        work = counted[engine] = count(settings, engine)
        metrics.append(_metric(engine, "bytes_moved", sum(work.bytes) / 2**20))
        metrics.append(_metric(engine, "flops", sum(work.flops) / 1e9))
    if (base := counted.get(BASELINE)) is not None:
        for engine, work in counted.items():
            metrics.append(_metric(engine, "bytes_ratio", sum(work.bytes) / sum(base.bytes)))
            metrics.append(_metric(engine, "flops_ratio", sum(work.flops) / sum(base.flops)))
    if settings.device == "cuda":
        metrics += _timed(settings, runnable)
    return Outcome(metrics, device=settings.device)


def count(settings: Settings, engine: str) -> Work:
    """Return the work of one step on tensors without storage: forward, backward, noise and an SGD update, equal for all."""
    from dpbench.simulate.cost import Cost

    cost = Cost()
    layer = _Layer(settings, engine, "meta")
    with cost:
        layer.step()
    layer.handle.detach()
    return cost.work


class _Layer:
    """One linear layer whose input requires a gradient, as inside a model, and the engine attached to it."""

    def __init__(self, settings: Settings, engine: str, device: str) -> None:
        import torch

        from dpbench.methods import engines

        dtype = getattr(torch, settings.dtype)
        shape = (settings.batch_size, settings.tokens)
        self.model = torch.nn.Linear(settings.inputs, settings.outputs, device=device, dtype=dtype)
        self.x = torch.randn(*shape, settings.inputs, device=device, dtype=dtype, requires_grad=True)
        self.weights = torch.randn(*shape, settings.outputs, device=device, dtype=dtype)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.handle = engines.attach(engine, self.model, self.optimizer, mechanism(settings, engine))

    def step(self) -> None:
        self.handle.backward(_losses, {"x": self.x, "weights": self.weights})
        self.optimizer.step()
        self.optimizer.zero_grad()


def _losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return [B] sums of the outputs times constants, so that the gradient of the output is dense and cheap."""
    return (model(batch["x"]) * batch["weights"]).flatten(1).sum(1)


def _timed(settings: Settings, engines: list[str]) -> list[Metric]:
    milliseconds: dict[str, list[float]] = {engine: [] for engine in engines}
    layers = {engine: _Layer(settings, engine, "cuda") for engine in engines}
    for number in range(-3, settings.rounds):
        for engine, layer in layers.items():
            seconds = seconds_per_call(layer.step, 1, lambda: wait_for("cuda"))
            if number >= 0:
                milliseconds[engine].append(1e3 * seconds)
    return [over_rounds("time", UNITS["time"], {"engine": engine}, values) for engine, values in milliseconds.items()]


def _metric(engine: str, name: str, value: float) -> Metric:
    return Metric(name=name, value=value, unit=UNITS[name], labels={"engine": engine}, kind="counted")


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Attach every engine to the layer without storage."""
    names = [name for name in settings.engines if not plugins.get("engine", name).missing]
    for engine in names:
        _Layer(settings, engine, "meta").handle.detach()
    return [f"{settings.inputs} x {settings.outputs} weights, {len(names)} engines"]

"""The kernels alone: compared with the fp64 oracle first, then timed in turn at the shapes of real models."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, Outcome, over_rounds
from dpbench.measure.rounds import seconds_per_call, turns, unmeasured, wait_for
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dpbench.kernels.leaf import Leaf, Sums, Use

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}
"""The largest relative error of a clipped sum against fp64 on the same rounded inputs (DESIGN, section 8)."""
NORMS = 1e-4
"""The largest relative error of norms, in any dtype."""
_WRONG = "not timed: wrong"
_NONE_IN_C = "skipped: there is none in C, torch's way is taken"


@dataclass(frozen=True)
class Case:
    """One kernel at one shape: `sizes` is (in, out) of a linear layer, (width,) of a norm, (rows, width) of an embedding."""

    op: str
    sizes: tuple[int, ...]

    @property
    def label(self) -> str:
        return "x".join(str(size) for size in self.sizes)

    def work(self, batch: int, tokens: int, element: int) -> tuple[float, float]:
        """Return the least (bytes, FLOPs) of a clipped sum: inputs read once, the fp32 sum written, norms not counted."""
        rows = batch * tokens
        if self.op == "linear":
            inputs, outputs = self.sizes
            return float(rows * (inputs + outputs) * element + 4 * inputs * outputs), 2.0 * rows * inputs * outputs
        width = self.sizes[-1]
        if self.op == "embedding":
            return float(rows * (width * element + 8) + 4 * self.sizes[0] * width), 2.0 * rows * width
        return float(2 * rows * width * element), 8.0 * rows * width


def _gpt2(width: int) -> list[Case]:
    linear = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width), (width, 50257)]
    return [*(Case("linear", s) for s in linear), Case("layernorm", (width,)), Case("embedding", (50257, width))]


def _llama(width: int, hidden: int) -> list[Case]:
    linear = [(width, width), (width, hidden), (hidden, width), (width, 32000)]
    return [*(Case("linear", s) for s in linear), Case("rmsnorm", (width,)), Case("embedding", (32000, width))]


SHAPES = {
    "small": [Case("linear", (96, 160)), Case("layernorm", (96,)), Case("rmsnorm", (96,)), Case("embedding", (500, 96))],
    "gpt2": _gpt2(768),
    "gpt2-medium": _gpt2(1024),
    "gpt2-large": _gpt2(1280),
    "gpt2-xl": _gpt2(1600),
    "llama-7b": _llama(4096, 11008),
    "llama-13b": _llama(5120, 13824),
}
"""The layers of published models, each shape once."""


class Settings(Strict):
    """Settings: the shapes of one model, one dtype, and the kernels to compare."""

    shapes: Literal["small", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama-7b", "llama-13b"] = "small"
    kernels: list[Literal["torch", "native", "triton"]] = Field(["torch"], min_length=1)
    batch_size: int = Field(4, ge=1, description="B, examples.")
    tokens: int = Field(128, ge=1, description="T, tokens an example.")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    function: str = "abadi"
    rounds: int = Field(5, ge=1, description="Every kernel is timed once a round, in turn.")
    milliseconds: float = Field(20.0, gt=0, description="A round repeats a kernel for about so long.")


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions that determine the numbers."""
    return Uses(plugins=(("function", settings.function),))


class Bench:
    """One case on a device: inputs, the fp64 answer, and a leaf for each choice of kernels."""

    def __init__(self, case: Case, settings: Settings, seed: int) -> None:
        import torch

        from dpbench import plugins
        from dpbench.kernels.leaf import Factor, Use
        from dpbench.methods.engines.layers import find_layers

        self.settings = settings
        device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
        torch.manual_seed(seed)
        module = _module(case).to(device, dtype)
        rows, first = (settings.batch_size, settings.tokens), case.sizes[0]
        x = torch.randint(0, first, rows) if case.op == "embedding" else torch.randn(*rows, first).to(dtype)
        self.use = Use(x.to(device), torch.randn(*rows, case.sizes[-1]).to(device, dtype))
        self.leaves: dict[str, Leaf] = {name: find_layers(module, name)[0].leaf for name in settings.kernels}
        self.expected_norms, gradients = _oracle(module, self.use)
        bound = float(self.expected_norms.median())  # so that half the examples are clipped
        function = plugins.get("function", settings.function).load()
        self.factor = Factor(settings.function, bound, 0.01, function.factor)
        factors = self.factor(self.expected_norms)
        self.expected_sums: dict[str, Tensor] = {}
        for factor, gradients_of_example in zip(factors, gradients, strict=True):
            for name, value in gradients_of_example.items():
                self.expected_sums[name] = (
                    self.expected_sums[name].add_(value * factor) if name in self.expected_sums else value * factor
                )

    def clip(self, kernels: str) -> tuple[Tensor, Sums]:
        """Return the (norms, sums) of one call, into fresh sums."""
        import torch

        from dpbench.kernels.leaf import Sums

        leaf = self.leaves[kernels]
        empty_sums = {name: torch.empty_like(p, dtype=torch.float32) for name, p in leaf.parameters.items()}
        sums = Sums(empty_sums, empty_sums)
        with torch.no_grad():
            return leaf.clip_into(self.use, self.factor, sums), sums

    def error(self, kernels: str) -> tuple[float, float]:
        """Return the relative errors of norms and of the worst sum; infinite where a number is not finite."""
        norms, sums = self.clip(kernels)
        errors = [_relative(sums[name], value) for name, value in self.expected_sums.items()]
        return _relative(norms, self.expected_norms), max(errors)

    def repeats(self, kernels: str) -> int:
        """Return the number of calls that take about `milliseconds`, after one that compiles."""
        self.clip(kernels)
        seconds = self.seconds(kernels, 1)
        return max(1, min(1000, math.ceil(self.settings.milliseconds / 1000 / max(seconds, 1e-6))))

    def seconds(self, kernels: str, calls: int) -> float:
        """Return the seconds of a call, between two waits for the device."""
        return seconds_per_call(lambda: self.clip(kernels), calls, lambda: wait_for(self.settings.device))


def _module(case: Case) -> nn.Module:
    from torch import nn

    first, last = case.sizes[0], case.sizes[-1]
    if case.op == "linear":
        return nn.Linear(first, last)
    if case.op == "embedding":
        return nn.Embedding(first, last)
    return nn.LayerNorm(first) if case.op == "layernorm" else nn.RMSNorm(first, eps=1e-5)


def _oracle(module: nn.Module, use: Use) -> tuple[Tensor, Iterator[dict[str, Tensor]]]:
    """Return ([B] norms, a generator of each example's gradients), by plain autograd in fp64, one example at a time."""
    import copy

    import torch

    wide = copy.deepcopy(module).double()

    def gradients() -> Iterator[dict[str, Tensor]]:
        for x, g in zip(use.x, use.g, strict=True):
            out = wide(x.double() if x.is_floating_point() else x)
            values = torch.autograd.grad((out * g.double()).sum(), list(wide.parameters()))
            yield {name: value for (name, _), value in zip(wide.named_parameters(), values, strict=True)}

    squares = [functools.reduce(torch.add, (v.square().sum() for v in example.values())) for example in gradients()]
    return torch.stack(squares).sqrt(), gradients()


def _relative(actual: Tensor, expected: Tensor) -> float:
    error = float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


def run(settings: Settings, context: Context) -> Outcome:
    """Check every case for each choice of kernels, then time the correct ones in turn, round by round.

    Raises:
        DpbenchError: there is no such device, or kernels cannot run on it.
    """
    from dpbench.execution.environment import require_device

    require_device(settings.device)
    _require_kernels(settings)
    metrics: list[Metric] = []
    cases = SHAPES[settings.shapes]
    for number, case in enumerate(cases):
        context.report(number, len(cases), f"{case.op} {case.label}")
        metrics += _measure(case, settings, context)
    wrong_metrics = [m for m in metrics if m.note.startswith(_WRONG)]
    facts = {"batch_size": settings.batch_size, "tokens": settings.tokens, "tolerance": TOLERANCE[settings.dtype]}
    warnings = [f"{m.labels['op']} {m.labels['shape']} by {m.labels['kernels']}: {m.note}" for m in wrong_metrics]
    return Outcome(metrics, facts=facts, warnings=warnings, device=settings.device)


def _require_kernels(settings: Settings) -> None:
    import torch

    from dpbench.kernels import launch
    from dpbench.kernels.linear import native

    if "triton" in settings.kernels and (why := launch.unavailable(torch.device(settings.device))):
        raise DpbenchError(f"kernels: triton cannot run on {settings.device}: {why}", "leave triton out, or use a GPU machine")
    if "native" not in settings.kernels:
        return
    if settings.dtype != "float32":
        raise DpbenchError(f"kernels: native cannot run in {settings.dtype}", "leave native out, or use float32")
    if settings.device != "cpu" or (why := native.unavailable()):
        why = why if settings.device == "cpu" else "kernels in C are for the CPU"
        raise DpbenchError(f"kernels: native cannot run on {settings.device}: {why}", "leave native out")


def _measure(case: Case, settings: Settings, context: Context) -> list[Metric]:
    from dpbench.kernels import launch

    bench = Bench(case, settings, context.seed)
    metrics: list[Metric] = []
    correct: list[str] = []
    kernels: str
    for kernels in settings.kernels:
        labels = {"op": case.op, "shape": case.label, "kernels": kernels}
        if kernels == "native" and case.op == "embedding":
            metrics += unmeasured({"error of norms": "relative", "error of sums": "relative", "time": "ms"}, labels, _NONE_IN_C)
            continue
        norms, sums = bench.error(kernels)
        accurate = norms <= NORMS and sums <= TOLERANCE[settings.dtype]
        for name, error in (("error of norms", norms), ("error of sums", sums)):
            note = "" if math.isfinite(error) else "not finite"
            metrics.append(Metric(name=name, value=None if note else error, unit="relative", labels=labels, note=note))
        if accurate and (kernels == "torch" or not launch.interpreting()):
            correct.append(kernels)
        else:
            note = "not timed: in the interpreter" if accurate else f"{_WRONG} by {sums:.1e} in the sum, {norms:.1e} in the norms"
            metrics += unmeasured({"time": "ms"}, labels, note)
    calls = {kernels: bench.repeats(kernels) for kernels in correct}
    seconds_of_kernels: dict[str, list[float]] = {kernels: [] for kernels in correct}
    for number, order in turns(correct, range(settings.rounds)):
        for kernels in order:
            seconds = bench.seconds(kernels, calls[kernels])
            seconds_of_kernels[kernels].append(seconds)
            context.steps.write(round=number, op=case.op, shape=case.label, kernels=kernels, seconds=seconds)
    element = 4 if settings.dtype == "float32" else 2
    moved, flops = case.work(settings.batch_size, settings.tokens, element)
    for kernels, rounds in seconds_of_kernels.items():
        labels = {"op": case.op, "shape": case.label, "kernels": kernels}
        metrics += [
            over_rounds("time", "ms", labels, [s * 1e3 for s in rounds]),
            over_rounds("bandwidth", "GB/s", labels, [moved / s / 1e9 for s in rounds]),
            over_rounds("rate", "GFLOP/s", labels, [flops / s / 1e9 for s in rounds]),
        ]
    return metrics


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return a remark on what a run will measure, without running it."""
    ops = sorted({case.op for case in SHAPES[settings.shapes]})
    return [f"{len(SHAPES[settings.shapes])} shapes of {settings.shapes}: {', '.join(ops)} by {', '.join(settings.kernels)}"]


def lines(metrics: list[Metric]) -> list[str]:
    """Return a table of the results for a terminal."""
    rows: dict[tuple[str, str, str], dict[str, Metric]] = {}
    for metric in metrics:
        key = (metric.labels["op"], metric.labels["shape"], metric.labels["kernels"])
        rows.setdefault(key, {})[metric.name] = metric
    table = [f"{'op':10} {'shape':14} {'kernels':8} {'error':>9} {'ms':>9} {'20 %':>9} {'80 %':>9} {'GB/s':>8} {'GFLOP/s':>9}"]
    for (op, shape, kernels), metric_of_name in rows.items():
        error, note = metric_of_name["error of sums"].value, metric_of_name["error of sums"].note
        text = f"{error:.1e}" if error is not None else "" if note == _NONE_IN_C else "inf"
        start = f"{op:10} {shape:14} {kernels:8} {text:>9}"
        clock = metric_of_name["time"]
        if clock.value is None:
            table.append(f"{start} {clock.note}")
        else:
            speeds = f"{metric_of_name['bandwidth'].value:8.1f} {metric_of_name['rate'].value:9.1f}"
            table.append(f"{start} {clock.value:9.3f} {clock.low:9.3f} {clock.high:9.3f} {speeds}")
    return table

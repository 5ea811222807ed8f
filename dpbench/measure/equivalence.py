"""Two private trainings that are equal in exact arithmetic: the digits to which their weights agree after many noisy steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from dpbench import methods, plugins
from dpbench.execution.contract import Context, Outcome
from dpbench.measure.rounds import split_missing
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn


Optimizer = Literal["sgd", "momentum", "adamw", "adamw_scaled"]
Rule = Literal["paper", "other"]
Precision = Literal["float64", "float32"]

INPUTS, HIDDEN, CLASSES = 20, 16, 4


class Settings(Strict):
    """Settings: `function` at bound 1 with (rate, decay), and `against` at `bound` with the (rate, decay) that a rule gives.

    Bu et al., 2023, section 4: SGD, with momentum or without, has rate / bound and decay x bound. AdamW keeps both, and then only
    its epsilon depends on the scale (`adamw_scaled`: epsilon x bound too). Rule `other` gives each optimizer the rule of the
    other kind, which must not agree. Labels are drawn at random, so that no gradient vanishes.
    """

    function: str
    against: str
    bound: float = Field(gt=0)
    gamma: float = Field(0.01, ge=0)
    all_clipped: bool = Field(False, description="Whether the two are one only where every example is longer than the bound.")
    optimizers: list[Optimizer] = Field(min_length=1)
    rules: list[Rule] = Field(min_length=1)
    engines: list[str] = Field(min_length=1)
    precisions: list[Precision] = Field(min_length=1)
    steps: int = Field(200, ge=1)
    rows: int = Field(256, ge=2)
    expected_batch_size: float = Field(32.0, gt=0)
    noise_multiplier: float = Field(1.0, ge=0)
    rate: float = Field(0.1, gt=0, description="Of SGD; of AdamW a tenth.")
    decay: float = Field(0.01, ge=0)
    epsilon: float = Field(1e-8, gt=0, description="AdamW's.")

    @model_validator(mode="after")
    def _private(self) -> Settings:
        for name in self.engines:
            if not plugins.get("engine", name).extra["private"]:
                raise ValueError(f"engine {name} clips nothing")
        return self


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions that determine the numbers; there is no data."""
    functions = dict.fromkeys((settings.function, settings.against))
    scopes = dict.fromkeys(_scope(name) for name in settings.engines)
    engines = tuple(("engine", name) for name in settings.engines)
    return Uses(plugins=(*engines, *(("scope", s) for s in scopes), *(("function", f) for f in functions)))


def _scope(engine: str) -> str:
    return str(plugins.get("engine", engine).extra["scopes"][0])


def run(settings: Settings, context: Context) -> Outcome:
    """Measure `agreement` for each engine, precision, optimizer and rule, and `moved`, because unmoved weights agree too.

    The examples are generated, so no result has an epsilon.
    """
    runnable, notes = split_missing(settings.engines)
    metrics: list[Metric] = []
    parts = [(e, p, o) for e in settings.engines for p in settings.precisions for o in settings.optimizers]
    for done, (engine, precision, optimizer) in enumerate(parts):
        context.report(done, len(parts), f"{engine}, {precision}, {optimizer}")
        reference = train(settings, engine, precision, optimizer, None, context.seed) if engine in runnable else None
        for rule in settings.rules:
            labels = {"engine": engine, "precision": precision, "optimizer": optimizer, "rule": rule}
            if reference is None:
                metrics += [_metric(name, None, labels, notes[engine]) for name in ("agreement", "moved")]
                continue
            other = train(settings, engine, precision, optimizer, rule, context.seed)
            not_all_clipped = settings.all_clipped and rule == "paper" and other.least_clipped < 1
            note = f"a step clipped {100 * other.least_clipped:.0f} % of its examples, not all" if not_all_clipped else ""
            agreement = None if not_all_clipped else digits(reference.weights, other.weights)
            metrics += [_metric("agreement", agreement, labels, note), _metric("moved", reference.moved, labels)]
            context.steps.write(step=len(metrics) // 2, **labels, agreement=agreement, moved=reference.moved)
    return Outcome(metrics)


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    moved: the relative distance of the weights from the initial ones; least_clipped: the share of clipped examples in the step
    with the fewest.
    """

    weights: list[Tensor]
    moved: float
    least_clipped: float


class _Examples:
    """A model and its examples; a logical batch is one physical batch."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self._x, self._y = model, x, y

    def physical(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        if len(drawn):
            yield drawn

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {"x": self._x[rows], "y": self._y[rows]}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B] cross entropies."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def train(settings: Settings, engine: str, precision: str, optimizer: Optimizer, rule: Rule | None, seed: int) -> Trained:
    """Train with batches, noise and initial weights of `seed`; rule None means `function` at bound 1."""
    import torch

    from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
    from dpbench.training.trainer import Trainer

    dtype = getattr(torch, precision)
    model, x, y = _problem(settings, seed)
    model, x = model.to(dtype).train(), x.to(dtype)
    initial = [p.detach().clone() for p in model.parameters()]
    function, bound = (settings.function, 1.0) if rule is None else (settings.against, settings.bound)
    clipping = Clipping(function, _scope(engine), bound, settings.gamma)
    sampling = Sampling("poisson", settings.rows, settings.expected_batch_size)
    plan = Mechanism(sampling, settings.steps, clipping, settings.noise_multiplier, seed=seed)
    stepper = _optimizer(settings, model, optimizer, rule)
    training = Trainer(_Examples(model, x, y), stepper, functools.partial(methods.attach, engine), [plan]).fit()
    shares = zip(training.clipped_fractions, training.batch_sizes, strict=True)
    clipped = [share for share, size in shares if size and share is not None]
    weights = [p.detach().double() for p in model.parameters()]
    return Trained(weights, difference([w.double() for w in initial], weights), min(clipped, default=1.0))


def _problem(settings: Settings, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return an MLP, inputs [N, 20] and random classes [N], in fp64."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
        x = torch.randn(settings.rows, INPUTS, dtype=torch.float64)
        y = torch.randint(0, CLASSES, (settings.rows,))
    return model, x, y


def _optimizer(settings: Settings, model: nn.Module, name: Optimizer, rule: Rule | None) -> torch.optim.Optimizer:
    """Return the optimizer for bound 1 if the rule is None, else one that is rescaled by the rule."""
    import torch

    adam = name.startswith("adamw")
    rate, decay = (settings.rate / 10 if adam else settings.rate), settings.decay
    if rule is not None and adam == (rule == "other"):
        rate, decay = rate / settings.bound, decay * settings.bound
    if adam:
        scale = settings.bound if name == "adamw_scaled" and rule is not None else 1.0
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, eps=settings.epsilon * scale)
    momentum = 0.9 if name == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay)


def difference(reference: list[Tensor], weights: list[Tensor]) -> float:
    """Return the largest over tensors of max |weights - reference| / max |reference|."""
    return max(
        float((actual - expected).abs().max() / expected.abs().max()) for expected, actual in zip(reference, weights, strict=True)
    )


def digits(reference: list[Tensor], weights: list[Tensor]) -> float:
    """Return -log10 of the difference; equal weights agree to the 16 digits of a double."""
    return -math.log10(max(difference(reference, weights), 1e-16))


def _metric(name: str, value: float | None, labels: dict[str, str], note: str = "") -> Metric:
    unit = "digits" if name == "agreement" else "x"
    return Metric(name=name, value=value, unit=unit, labels=labels, kind="counted", note=note)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return a remark on the amount of work; there is no data and no model."""
    pairs = len(settings.engines) * len(settings.precisions) * len(settings.optimizers) * (1 + len(settings.rules))
    return [f"{pairs} trainings of {settings.steps} steps"]

"""A search over steps, rates and bounds on a synthetic quadratic: the growth of the best gradient norm with the dimension."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpbench.execution.contract import Context, Outcome
from dpbench.privacy import accounting
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

_CAVEAT = "the best of a grid is chosen by the true gradient, and the search is not charged"


class Settings(Strict):
    """Settings of one method on one spectrum, all dimensions in one run, with full batches; epsilon is that of a grid point."""

    method: Literal["dpzero", "dpgd_0th", "dp_gd"]
    spectrum: Literal["full", "sqrt", "log"] = Field(description="Trace of the Hessian: d, about sqrt d, about log d.")
    dimensions: list[int] = Field(min_length=2)
    examples: int = Field(10000, ge=1, description="n, for training; as many for testing.")
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    relation: Literal["add_or_remove", "replace_one"] = "replace_one"
    steps: list[int] = Field(min_length=1)
    learning_rates: list[float] = Field(min_length=1)
    bounds: list[float] = Field(min_length=1)

    @model_validator(mode="after")
    def _positive(self) -> Settings:
        for name in ("dimensions", "steps", "learning_rates", "bounds"):
            values = getattr(self, name)
            if min(values) <= 0 or len(set(values)) != len(values):
                raise ValueError(f"{name}: give positive values, each once")
        return self


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions that determine the numbers. DP-GD has none: it is not a zeroth-order method."""
    return Uses(plugins=() if settings.method == "dp_gd" else (("zeroth", settings.method),))


def run(settings: Settings, context: Context) -> Outcome:
    """Search the grid in every dimension.

    Returns:
        For each dimension `gradient_norm` and `loss` on the training examples and `test_...` on the test examples, each at its
        best grid point; and `error_slope`, the least squares slope of the log squared gradient norm over log d.
    """
    import numpy as np

    from dpbench.methods.zeroth import quadratic

    grid = quadratic.Grid.of(settings.steps, settings.learning_rates, settings.bounds)
    multipliers = {steps: _multiplier(settings, steps) for steps in settings.steps}
    metrics: list[Metric] = []
    best: list[dict[str, float]] = []
    for number, dimension in enumerate(settings.dimensions):
        context.report(number, len(settings.dimensions), f"d = {dimension}, {len(grid.steps)} trainings")
        problem = quadratic.Problem.draw(dimension, settings.spectrum, settings.examples, context.seed)
        points = quadratic.train(settings.method, problem, grid, multipliers, context.seed)
        values = {
            f"{prefix}{name}": np.where(np.isfinite(result), result, np.inf)
            for prefix, split in (("", "train"), ("test_", "test"))
            for name, result in (
                ("gradient_norm", problem.gradient_norms(points, split)),
                ("loss", problem.losses(points, split)),
            )
        }
        best_point = int(values["gradient_norm"].argmin())
        best.append(
            {
                "steps": int(grid.steps[best_point]),
                "learning_rate": float(grid.rates[best_point]),
                "bound": float(grid.bounds[best_point]),
            }
        )
        labels = {"dimension": str(dimension)}
        metrics += [Metric(name=name, value=float(v.min()), unit="", labels=labels) for name, v in values.items()]
        context.steps.write(step=number, dimension=dimension, gradient_norm=float(values["gradient_norm"].min()), **best[-1])
    norms = [m.value for m in metrics if m.name == "gradient_norm" and m.value is not None]
    slope = quadratic.slope(settings.dimensions, [v * v for v in norms])
    metrics.append(Metric(name="error_slope", value=slope, unit=""))
    facts = {
        "grid_points": len(grid.steps),
        "best": dict(zip(map(str, settings.dimensions), best, strict=True)),
        "noise_multipliers": {str(t): m for t, m in multipliers.items()},
        "not_charged": _CAVEAT,
    }
    return Outcome(metrics, facts=facts)


def _multiplier(settings: Settings, steps: int) -> float:
    return accounting.calibrate(settings.epsilon, sample_rate=1.0, steps=steps, delta=settings.delta, relation=settings.relation)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return a remark on the amount of work; there is no data and no model."""
    points = len(settings.learning_rates) * len(settings.bounds)
    return [f"{points * len(settings.steps)} trainings a dimension, {points * sum(settings.steps):,} steps in all"]

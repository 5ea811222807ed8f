"""Gradient descent with clipped gradients on a quadratic, where normalising stalls and a stability constant does not."""

from __future__ import annotations

from pydantic import Field

from dpbench.execution.contract import Context, Outcome
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

START = 0.9
"""The start of a chain, as a share of the way from the optimum to an example: in the region where examples pull both ways."""


class Settings(Strict):
    """Settings of one clipping function. Half of the examples are at +spread, half at -spread along the first coordinate.

    The gradient of an example is then w -+ spread e_1: the true gradient w with centrally symmetric noise, which Bu et al., 2023,
    assume.
    """

    function: str
    bound: float = Field(1.0, gt=0)
    gamma: float = Field(0.01, ge=0)
    steps: list[int] = Field(min_length=1, description="T: a chain of its own is run for each.")
    dimension: int = Field(1, ge=1)
    spread: float = Field(0.05, gt=0)
    noise_std: float = Field(0.0, ge=0, description="Of a step's noise on the mean clipped gradient, in each coordinate.")
    rate: float = Field(1.0, gt=0, description="The learning rate is this over sqrt(T).")
    chains: int = Field(512, ge=1, description="Independent chains, over which the gradient norm is averaged at each step.")


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions that determine the numbers."""
    return Uses(plugins=(("function", settings.function),))


def run(settings: Settings, context: Context) -> Outcome:
    """Measure `gradient_norm` for each T: the least over steps of the mean over chains of the true gradient's norm.

    Nothing is private here: the examples are two points, and the recursion is what is measured.
    """
    metrics = []
    for number, steps in enumerate(settings.steps):
        context.report(number, len(settings.steps), f"{steps} steps")
        value = least_gradient(settings, steps, context.seed)
        context.steps.write(step=steps, gradient_norm=value)
        metrics.append(Metric(name="gradient_norm", value=value, unit="", labels={"steps": str(steps)}))
    return Outcome(metrics, facts={"start": START * settings.spread, "chains": settings.chains})


def least_gradient(settings: Settings, steps: int, seed: int) -> float:
    """Return the minimum over t <= T of the mean over chains of the norm of the true gradient, which is that of (1/2) |w|^2."""
    import torch

    from dpbench import plugins

    factor = plugins.get("function", settings.function).load().factor
    generator = torch.Generator().manual_seed(seed)
    shape = (settings.chains, settings.dimension)
    example = torch.zeros(settings.dimension, dtype=torch.float64)
    example[0] = settings.spread
    w = (START * example).expand(shape).clone()
    rate = settings.rate / steps**0.5
    least = float(w.norm(dim=1).mean())
    for _ in range(steps):
        mean_clipped = torch.zeros_like(w)
        for gradient in (w - example, w + example):  # one for each half, whose examples are equal
            mean_clipped += gradient * factor(gradient.norm(dim=1), settings.bound, settings.gamma)[:, None] / 2
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) * settings.noise_std
        w = w - rate * (mean_clipped + noise)
        least = min(least, float(w.norm(dim=1).mean()))
    return least


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return a remark on the amount of work; there is no data and no model."""
    return [f"{sum(settings.steps):,} steps of {settings.chains} chains"]

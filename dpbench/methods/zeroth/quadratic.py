"""The synthetic quadratic of Zhang et al., ICML 2024 (Table 6, Figures 1 and 2): all grid points of a search are trained at once.

f_i(x) = (1/2) (x - x_i)^T A (x - x_i) with A diagonal, so that an example's derivative along u is (A u)^T x - (A u)^T x_i,
whatever the perturbation: the finite difference of a quadratic is exact. All grid points share a step's direction, and with it
the examples' numbers (A u)^T x_i, which one matrix product gives for many steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SPECTRA = {
    "full": lambda k: np.ones(len(k)),
    "sqrt": lambda k: k**-0.5,
    "log": lambda k: 1 / k,
}
"""The eigenvalues a_k of A for k = 1..d, with |A| = 1 and trace O(d), O(sqrt d), O(log d)."""

_TOGETHER = 64  # directions whose products with all examples are computed at once
_POINTS = 256  # grid points whose products with all examples are held at once
_DATA, _DIRECTION, _NOISE = 0, 1, 2  # streams of a seed


@dataclass(frozen=True)
class Problem:
    """A problem: the eigenvalues of A [d], training examples x_i ~ N(1, I_d), [n, d] in float32, and the means and spreads.

    means and spread are those of the examples for training and testing, [d] in float64 and one number.
    """

    eigenvalues: Array
    train: Array
    means: dict[str, Array]
    spread: dict[str, float]

    @classmethod
    def draw(cls, dimension: int, spectrum: str, examples: int, seed: int) -> Problem:
        """Draw a problem with `examples` examples for training and as many for testing."""
        eigenvalues = SPECTRA[spectrum](np.arange(1, dimension + 1, dtype="f8"))
        parts, means, spread = [], {}, {}
        for number, name in enumerate(("train", "test")):
            part = _generator(seed, _DATA, number).standard_normal((examples, dimension), dtype="f4") + np.float32(1)
            means[name] = part.mean(0, dtype="f8")
            spread[name] = float(eigenvalues @ part.var(0, dtype="f8")) / 2
            parts.append(part)
        return cls(eigenvalues, parts[0], means, spread)

    def gradient_norms(self, x: Array, split: str) -> Array:
        """Return |A (x - mean)| of points [G, d]: the norm of the mean loss' gradient."""
        norms: Array = np.linalg.norm((x - self.means[split]) * self.eigenvalues, axis=1)
        return norms

    def losses(self, x: Array, split: str) -> Array:
        """Return the mean losses of points [G, d]."""
        losses: Array = ((x - self.means[split]) ** 2) @ self.eigenvalues / 2 + self.spread[split]
        return losses


@dataclass(frozen=True)
class Grid:
    """All combinations of steps, rates and bounds, sorted by steps, each [G]."""

    steps: Array
    rates: Array
    bounds: Array

    @classmethod
    def of(cls, steps: Sequence[int], rates: Sequence[float], bounds: Sequence[float]) -> Grid:
        points = np.array([(t, r, c) for t in sorted(steps) for r in rates for c in bounds], dtype="f8")
        return cls(points[:, 0].astype(int), points[:, 1], points[:, 2])

    def active(self, done: int) -> slice:
        """Return the points of more than `done` steps, which are the last ones."""
        return slice(int(np.searchsorted(self.steps, done, side="right")), None)


def train(method: str, problem: Problem, grid: Grid, multipliers: Mapping[int, float], seed: int) -> Array:
    """Return the last iterates [G, d], float64, from x = 0, with full batches.

    Args:
        method: `dpzero`, `dpgd_0th` or `dp_gd`.
        multipliers: For each number of steps, the noise std over the clipping bound, of the sum over examples.

    Guarantee: each point by itself is the composition of its `steps` Gaussian releases of a sum bounded by C an example
    (`dpzero`: one number; else a vector). The choice among points is not accounted for.
    """
    if method == "dp_gd":
        return _first_order(problem, grid, multipliers, seed)
    return _zeroth_order(method, problem, grid, multipliers, seed)


def _zeroth_order(method: str, problem: Problem, grid: Grid, multipliers: Mapping[int, float], seed: int) -> Array:
    n, d = problem.train.shape
    x = np.zeros((len(grid.steps), d))
    std = np.array([multipliers[int(t)] for t in grid.steps]) * grid.bounds
    noise = _generator(seed, _NOISE)
    for done, u, ordered, below in _projections(problem, int(grid.steps[-1]), seed):
        on = grid.active(done)
        bounds = grid.bounds[on] / (np.linalg.norm(u) if method == "dpgd_0th" else 1.0)
        total = clipped_sum((x[on] * problem.eigenvalues) @ u, bounds, ordered, below)
        if method == "dpzero":
            total = total + std[on] * noise.standard_normal(len(total))
        x[on] -= (grid.rates[on] * total / n)[:, None] * u
        if method == "dpgd_0th":
            x[on] -= (grid.rates[on] * std[on] / n)[:, None] * noise.standard_normal((len(total), d), dtype="f4")
    return x


def _projections(problem: Problem, steps: int, seed: int) -> Iterator[tuple[int, Array, Array, Array]]:
    """Yield (step, u [d], the examples' numbers (A u)^T x_i sorted [n], their running sums [n + 1])."""
    d = problem.train.shape[1]
    generator = _generator(seed, _DIRECTION)
    for first in range(0, steps, _TOGETHER):
        count = min(_TOGETHER, steps - first)
        u = generator.standard_normal((count, d))
        along = np.sort((u * problem.eigenvalues).astype("f4") @ problem.train.T, axis=1).astype("f8")
        sums = np.concatenate([np.zeros((count, 1)), np.cumsum(along, axis=1)], axis=1)
        for number in range(count):
            yield first + number, u[number], along[number], sums[number]


def clipped_sum(at: Array, bounds: Array, ordered: Array, below: Array) -> Array:
    """Return sum_i clip(at - q_i, -C, C) for each point, in O(log n) a point, from sorted q_i and their running sums.

    Args:
        at, bounds: [G], the points and C.
        ordered: [n], the sorted q_i.
        below: [n + 1]; below[k] is the sum of the first k.
    """
    low = np.searchsorted(ordered, at - bounds, side="left")
    high = np.searchsorted(ordered, at + bounds, side="right")
    sums: Array = bounds * (low + high - len(ordered)) + at * (high - low) - (below[high] - below[low])
    return sums


def _first_order(problem: Problem, grid: Grid, multipliers: Mapping[int, float], seed: int) -> Array:
    """Train by DP-GD: gradients A (x - x_i), clipped by norms that two matrix products give for all points and examples."""
    n, d = problem.train.shape
    a = problem.eigenvalues.astype("f4")
    scaled = problem.train * a
    squares = np.einsum("nd,nd->n", scaled, scaled)
    x = np.zeros((len(grid.steps), d))
    std = np.array([multipliers[int(t)] for t in grid.steps]) * grid.bounds
    noise = _generator(seed, _NOISE)
    for done in range(int(grid.steps[-1])):
        active = grid.active(done).start
        for start in range(active, len(grid.steps), _POINTS):
            on = slice(start, min(start + _POINTS, len(grid.steps)))
            at = x[on].astype("f4") * a
            distances = np.einsum("gd,gd->g", at, at)[:, None] + squares - 2 * (at @ scaled.T)
            factor = grid.bounds[on, None].astype("f4") / np.sqrt(np.maximum(distances, 1e-20, out=distances), out=distances)
            np.minimum(factor, 1, out=factor)
            total = at * factor.sum(1, dtype="f8")[:, None] - factor @ scaled
            total += std[on, None] * noise.standard_normal(total.shape, dtype="f4")
            x[on] -= (grid.rates[on] / n)[:, None] * total
    return x


def slope(dimensions: Sequence[int], values: Sequence[float]) -> float:
    """Return the least-squares slope of log value over log d."""
    return float(np.polyfit(np.log(dimensions), np.log(values), 1)[0])


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, *stream]))

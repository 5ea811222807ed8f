"""The quadratic's batched trainings against one training at a time, written plainly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpbench.measure import quadratic as job
from dpbench.methods.zeroth import quadratic
from dpbench.methods.zeroth.quadratic import Grid, Problem, clipped_sum, slope, train

NONE = {3: 0.0, 70: 0.0}


@given(
    arrays("f8", st.integers(1, 30), elements=st.floats(-100, 100)),
    st.floats(-200, 200),
    st.floats(1e-3, 300),
)
def test_a_clipped_sum_by_order_is_the_plain_one(values, at, bound):
    ordered = np.sort(values)
    below = np.concatenate([[0.0], np.cumsum(ordered)])
    clipped = clipped_sum(np.array([at]), np.array([bound]), ordered, below)[0]
    assert clipped == pytest.approx(np.clip(at - values, -bound, bound).sum(), rel=1e-9, abs=1e-7)


def plainly(method, problem, steps, rate, bound, seed):
    """No batching, no sorting, no noise; finite differences of the losses themselves."""
    a, examples = problem.eigenvalues, problem.train.astype("f8")
    n, d = examples.shape
    generator = quadratic._generator(seed, quadratic._DIRECTION)
    x = np.zeros(d)

    def each(point):
        return ((point - examples) ** 2) @ a / 2

    blocks = []
    for _ in range(steps):
        if not blocks:
            blocks = list(generator.standard_normal((min(64, steps), d)))
        u = blocks.pop(0)
        if method == "dp_gd":
            gradients = (x - examples) * a
            factor = np.minimum(1, bound / np.linalg.norm(gradients, axis=1))
            x = x - rate * factor @ gradients / n
            continue
        derivatives = (each(x + 1e-4 * u) - each(x - 1e-4 * u)) / 2e-4
        limit = bound / np.linalg.norm(u) if method == "dpgd_0th" else bound
        x = x - rate * np.clip(derivatives, -limit, limit).sum() / n * u
    return x


@pytest.mark.parametrize("method", ["dpzero", "dpgd_0th", "dp_gd"])
@pytest.mark.parametrize("spectrum", ["full", "sqrt", "log"])
def test_every_grid_point_is_the_training_it_stands_for(method, spectrum):
    problem = Problem.draw(7, spectrum, 40, 0)
    grid = Grid.of([3], [0.3, 0.01], [0.5, 100.0])
    trained = train(method, problem, grid, NONE, 5)
    for number in range(len(grid.steps)):
        expected = plainly(method, problem, 3, grid.rates[number], grid.bounds[number], 5)
        assert np.abs(expected).max() > 1e-4
        assert trained[number] == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["dpzero", "dpgd_0th", "dp_gd"])
def test_shorter_trainings_end_where_the_longer_ones_pass(method):
    problem = Problem.draw(5, "sqrt", 30, 0)
    alone = train(method, problem, Grid.of([3], [0.1], [1.0]), NONE, 0)
    both = train(method, problem, Grid.of([70, 3], [0.1], [1.0]), NONE, 0)
    if method == "dp_gd":  # zeroth-order directions come in blocks, whose length the longest training decides
        assert both[0] == pytest.approx(alone[0])
    assert not np.allclose(both[0], both[1])


@pytest.mark.parametrize("method", ["dpzero", "dpgd_0th", "dp_gd"])
def test_noise_on_the_sum_is_the_bound_times_the_multiplier(method):
    problem = Problem.draw(400, "full", 3, 0)
    grid = Grid.of([1], [2.0], [5.0])
    quiet, loud = (train(method, problem, grid, {1: m}, 0)[0] for m in (0.0, 1000.0))
    moved = (loud - quiet) / (2.0 / 3 * 1000 * 5.0)
    if method == "dpzero":  # along the direction alone
        u = quadratic._generator(0, quadratic._DIRECTION).standard_normal((1, 400))[0]
        assert np.linalg.matrix_rank(np.stack([moved, u]), tol=1e-6) == 1
        assert 0 < np.linalg.norm(moved) / np.linalg.norm(u) < 4
    else:
        assert 0.9 < moved.std() < 1.1


@pytest.mark.parametrize(("spectrum", "trace"), [("full", 1000), ("sqrt", 61.8), ("log", 7.49)])
def test_traces_grow_as_named(spectrum, trace):
    problem = Problem.draw(1000, spectrum, 2, 0)
    assert problem.eigenvalues.sum() == pytest.approx(trace, rel=1e-3)
    assert problem.eigenvalues.max() == 1


def test_the_gradient_is_that_of_the_loss():
    problem = Problem.draw(6, "log", 50, 1)
    x, step = np.linspace(-1, 1, 6), 1e-5
    for split in ("train", "test"):
        slopes = [
            (problem.losses((x + step * e)[None], split) - problem.losses((x - step * e)[None], split))[0] / (2 * step)
            for e in np.eye(6)
        ]
        assert problem.gradient_norms(x[None], split)[0] == pytest.approx(np.linalg.norm(slopes), rel=1e-6)
    direct = (((x - problem.train.astype("f8")) ** 2) @ problem.eigenvalues / 2).mean()
    assert problem.losses(x[None], "train")[0] == pytest.approx(direct, rel=1e-6)


def test_the_slope_is_that_of_a_power():
    d = [20, 50, 100, 2000]
    assert slope(d, [3 * k**0.5 for k in d]) == pytest.approx(0.5)


def test_a_grid_that_is_none_is_refused():
    base_settings = {
        "method": "dpzero",
        "spectrum": "log",
        "dimensions": [2, 4],
        "epsilon": 2,
        "delta": 1e-6,
        "steps": [1],
        "learning_rates": [1.0],
        "bounds": [1.0],
    }
    job.Settings(**base_settings)
    for name, bad in (("bounds", [0.0]), ("steps", [2, 2]), ("dimensions", [4])):
        with pytest.raises(ValueError, match=name):
            job.Settings(**{**base_settings, name: bad})

"""DPZero's published code against its algorithm (benchmarks/dpzero/deviations.yaml)."""

from __future__ import annotations

import pytest
import torch
import zeroth_runs
from spending import epsilon_of
from zeroth_checks import data, losses, net

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods.zeroth.directions import Directions
from dpbench.methods.zeroth.trainer import ZerothOrder
from dpbench.privacy import accounting
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

pytestmark = pytest.mark.usefixtures("coarse_grid")
DELTA = 1e-5


def run(folder, **over):
    return zeroth_runs.run(folder, **{"relation": "replace_one", "epsilon": 2.0} | over)


def value(outcome, name):
    return next(m for m in outcome.metrics if m.name == name)


def released(method, published):
    """(what one step released of the sum, the sum itself, the noise that the direction's public seed gives)."""
    plan = Mechanism(Sampling("fixed", 8, 8.0), 5, Clipping(bound=0.5), 2.0, DELTA, seed=7)
    model = net()
    optimizer = ZerothOrder(method, model, plan, 0.1, 1e-4, published=published)
    seen = []
    bounded = optimizer._bounded
    optimizer._bounded = lambda *args: seen.append(bounded(*args)) or seen[-1]
    slope = optimizer.step(losses, [data()]).slope
    public = Directions([p for p in net().parameters() if p.requires_grad], 7).next_number(0)
    return slope * 8.0, seen[0][1], plan.noise_multiplier * plan.sensitivity * public


def test_zero_2_the_noise_can_be_taken_off():
    sum_, true, noise = released("dpzero_published", True)
    assert sum_ - noise == pytest.approx(true, abs=1e-9)
    sum_, true, noise = released("dpzero", False)
    assert abs(sum_ - noise - true) > 1e-3


def test_zero_2_has_no_epsilon(tmp_path):
    outcome = run(tmp_path, method="dpzero_published")
    assert (value(outcome, "epsilon").value, value(outcome, "epsilon").text) == (None, "none")
    assert outcome.privacy.epsilon is None
    assert outcome.privacy.validity == "nominal"
    assert "public" in outcome.privacy.reasons[0]


def test_zero_1_unamplified_epochs_cost_more_than_stated(tmp_path):
    outcome = run(tmp_path, sampler="fixed", steps=6)
    real = value(outcome, "epsilon").value
    assert real > 2.0
    expected = epsilon_of(  # 80 rows are 4 batches of 20: 6 steps are 2 epochs at most
        noise_multiplier=outcome.privacy.noise_multiplier, sample_rate=1.0, steps=2, delta=DELTA, relation="replace_one"
    )
    assert real == pytest.approx(expected, rel=1e-12)
    assert outcome.privacy.validity == "nominal"


def test_poisson_batches_have_no_epochs():
    with pytest.raises(DpbenchError, match="no epochs"):
        Mechanism(Sampling("poisson", 8, 2.0), 1).epsilon_of_epochs()


def test_zero_3_replacing_a_row_asks_for_twice_the_noise():
    """An accountant of one row more or less, held against one row replaced, is off by about two in the multiplier."""
    more = {
        r: accounting.calibrate(2.0, sample_rate=1.0, steps=10, delta=DELTA, relation=r) for r in ("replace_one", "add_or_remove")
    }
    assert more["replace_one"] == pytest.approx(2 * more["add_or_remove"], rel=0.02)


def test_zero_5_fewer_rows_cost_more_than_stated(tmp_path):
    right, wrong = run(tmp_path), run(tmp_path, accounted_rows=120)
    assert value(right, "epsilon").value <= 2.0 < value(wrong, "epsilon").value
    assert value(wrong, "stated_epsilon").value == 2.0
    assert wrong.mechanism["sampling"]["dataset_size"] == 80
    assert wrong.privacy.epsilon == value(wrong, "epsilon").value


def test_published_code_is_offered_nowhere_else():
    assert "dpzero_published" not in plugins.discover("zeroth")
    with pytest.raises(DpbenchError):
        ZerothOrder("dpzero_published", torch.nn.Linear(2, 2), Mechanism(Sampling("fixed", 2, 2.0), 1), 0.1)

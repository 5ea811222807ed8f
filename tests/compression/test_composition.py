"""Several stages on the same examples: one accountant, epsilon at the target and never above it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from spending import epsilon_of

from dpbench.errors import DpbenchError
from dpbench.privacy import accounting
from dpbench.privacy.accounting import Release
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.composition import phases, release_in, release_of, stage_seed
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling, calibrated
from dpbench.privacy.noise import Noise
from dpbench.privacy.sampling import batches

CLIPPING = Clipping("auto_s")
FIRST, SECOND = Sampling("poisson", 5000, 200.0), Sampling("poisson", 5000, 300.0)
DELTA = 1e-5


def teacher(epsilon=2.0, steps=12):
    return calibrated(Mechanism(FIRST, steps, CLIPPING, delta=DELTA), epsilon)


def calibrated_after(spent, epsilon, steps=20, **options):
    """A stage, together with the stages before it."""
    return calibrated(Mechanism(SECOND, steps, CLIPPING, delta=DELTA, spent=tuple(spent), **options), epsilon)


@pytest.mark.parametrize("target", [2.5, 8.0])
def test_both_stages_spend_the_target_within_one_percent(target):
    composition = calibrated_after([release_of(teacher())], target)
    assert 0.99 * target <= composition.epsilon() <= target
    alone = calibrated(Mechanism(SECOND, 20, CLIPPING, delta=DELTA), target)
    assert composition.noise_multiplier > alone.noise_multiplier
    by_itself = replace(composition, spent=(), target_epsilon=None).epsilon()
    assert by_itself < composition.epsilon() < 2.0 + by_itself


def test_a_composition_is_what_dp_accounting_says_of_both_events():
    import dp_accounting
    from dp_accounting import rdp

    parts = (Release(0.9, 0.04, 12), Release(1.1, 0.06, 20))
    theirs = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for one in parts:
        event = dp_accounting.PoissonSampledDpEvent(one.sample_rate, dp_accounting.GaussianDpEvent(one.noise_multiplier))
        theirs.compose(event, one.steps)
    assert accounting.epsilon(parts, delta=DELTA, accountant="rdp") == pytest.approx(theirs.get_epsilon(DELTA))
    assert accounting.epsilon(parts, delta=DELTA) < theirs.get_epsilon(DELTA)


def test_two_equal_stages_are_one_of_twice_the_steps():
    half = Release(1.0, 0.04, 10)
    once = accounting.epsilon((Release(1.0, 0.04, 20),), delta=DELTA)
    assert accounting.epsilon((half, half), delta=DELTA) == pytest.approx(once, rel=1e-6)
    epsilon_of_twice = epsilon_of(noise_multiplier=1.0, sample_rate=0.04, steps=20, delta=DELTA)
    assert once == epsilon_of_twice


def test_a_budget_spent_twice_is_refused():
    """Both stages calibrated to the whole target, each alone: each is within it, both together are not."""
    target = 4.0
    first, second = teacher(target), calibrated(Mechanism(SECOND, 20, CLIPPING, delta=DELTA), target)
    assert max(first.epsilon(), second.epsilon()) <= target
    with pytest.raises(DpbenchError, match=r"epsilon .* of all stages together is above the target 4"):
        replace(second, spent=(release_of(first),))


def test_a_teacher_that_has_spent_all_leaves_no_student():
    with pytest.raises(DpbenchError, match="leaves nothing of 2"):
        calibrated_after([release_of(teacher(4.0))], 2.0)


def test_a_stage_without_noise_is_refused():
    open_ = Mechanism(FIRST, 5, CLIPPING)
    with pytest.raises(DpbenchError, match="without Gaussian noise"):
        release_of(open_)
    with pytest.raises(DpbenchError, match="without Gaussian noise"):
        Mechanism(FIRST, 5, spent=(Release(1.0, 0.1, 1),))
    with pytest.raises(DpbenchError, match="was not private"):
        release_in(Mechanism(FIRST, 5).describe())


def test_a_record_gives_back_the_stage():
    stage = teacher()
    assert release_in(stage.describe()) == release_of(stage)


def test_what_is_recorded_names_all_stages():
    spent = release_of(teacher())
    description = calibrated_after([spent], 4.0, seed=5).describe()
    assert description["stages_before"] == [{"noise_multiplier": spent.noise_multiplier, "sample_rate": 0.04, "steps": 12}]
    assert description["target_epsilon"] == 4.0
    assert description["steps"] == 20


def noise_of(seed):
    total = torch.zeros(1000)
    Noise(Mechanism(FIRST, 2, CLIPPING, 1.0, seed=seed)).release_([(total, 1.0)], 1.0)
    return total


def test_stages_draw_other_examples_and_other_noise():
    seeds = [0, stage_seed(0, "student"), stage_seed(0, "phase 1"), stage_seed(1, "student"), 1]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**53
    noises = [noise_of(seed) for seed in seeds]
    draws = [next(batches(Mechanism(FIRST, 1, seed=seed))) for seed in seeds]
    for i in range(len(seeds)):
        for j in range(i):
            assert abs(float(torch.corrcoef(torch.stack([noises[i], noises[j]]))[0, 1])) < 0.15
            assert not np.array_equal(draws[i], draws[j])
    assert torch.equal(noise_of(stage_seed(0, "student")), noises[1])


def test_phases_are_the_mechanism_cut_with_noise_of_their_own():
    plan = calibrated(Mechanism(SECOND, 20, CLIPPING, delta=DELTA, seed=3), 4.0)
    cut = phases(plan, [5, 5, 10])
    assert [p.steps for p in cut] == [5, 5, 10]
    assert cut[0].seed == plan.seed
    assert len({p.seed for p in cut}) == 3
    together = accounting.epsilon(tuple(release_of(p) for p in cut), delta=DELTA)
    assert together == pytest.approx(plan.epsilon(), rel=1e-6)
    with pytest.raises(DpbenchError, match="must sum to it"):
        phases(plan, [5, 5])
    adaptive = Mechanism(SECOND, 20, Clipping("abadi", adaptive=Adaptive(0.5)), 1.0)
    with pytest.raises(DpbenchError, match="adaptive thresholds"):
        phases(adaptive, [10, 10])


def test_a_calibration_behind_a_teacher_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path))
    spent = (Release(1.0, 0.04, 12),)
    asked = {"sample_rate": 0.06, "steps": 20, "delta": DELTA}
    first = accounting.calibrate(4.0, spent=spent, **asked)
    monkeypatch.setattr(accounting, "_search", lambda *_, **__: pytest.fail("calibrated twice"))
    assert accounting.calibrate(4.0, spent=spent, **asked) == first


@pytest.mark.parametrize("relation", ["add_or_remove", "replace_one"])
def test_a_composition_is_of_its_own_relation(relation):
    """Calibrated, asked and guarded under it."""
    composition = calibrated_after([Release(2.0, 0.04, 5)], 3.0, steps=8, relation=relation)
    parts = (Release(2.0, 0.04, 5), release_of(composition))
    assert 2.97 <= accounting.epsilon(parts, delta=DELTA, relation=relation) <= 3.0
    assert composition.epsilon() == accounting.epsilon(parts, delta=DELTA, relation=relation)
    assert composition.relation == relation


def test_a_stage_before_of_another_relation_or_noise_is_refused():
    record = teacher().describe()
    assert release_in(record, "add_or_remove") == release_of(teacher())
    with pytest.raises(DpbenchError, match="has the relation add_or_remove, this one replace_one"):
        release_in(record, "replace_one")
    with pytest.raises(DpbenchError, match="laplace noise"):
        release_in(record | {"noise": "laplace"})


@pytest.mark.parametrize("steps", [[], [12, 0], [13, -1], [6.0, 6.0], [True, 11]])
def test_phases_that_are_no_phases_are_named(steps):
    with pytest.raises(DpbenchError, match="phase"):
        phases(teacher(), steps)


def test_what_a_composition_is_made_of_is_checked():
    teacher_stage = teacher()
    for spent in ([Release(1.0, 0.1, 1)], ((1.0, 0.1, 1),), None):
        with pytest.raises(DpbenchError, match="tuple of releases"):
            replace(teacher_stage, spent=spent)
    with pytest.raises(DpbenchError, match="target_epsilon"):
        replace(teacher_stage, spent=(), target_epsilon=float("nan"))
    with pytest.raises(DpbenchError, match="unknown randomness"):
        calibrated_after([], 3.0, steps=8, randomness="Secret")

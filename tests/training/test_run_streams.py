"""Seeds and streams of a run: draws, noise, directions and augmentation are pairwise apart over stages, phases and steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from job_runs import CASES, COMPRESS, context_of, run

from dpbench import methods
from dpbench.jobs import compression as compress
from dpbench.jobs import public_student
from dpbench.methods import engines
from dpbench.privacy.composition import phases, stage_seed
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.privacy.sampling import batches
from dpbench.tasks.image_classification import task as image_classification
from dpbench.validation import parse

POOL = 4
"""Words of a SeedSequence: shorter entropy is filled up with zeros, so that (s, 3) and (s, 3, 0, 0) are one stream."""


def filled(entropy):
    words = [entropy] if isinstance(entropy, int) else list(entropy)
    return tuple([*words, *[0] * (POOL - len(words))])


@pytest.fixture
def entropies(monkeypatch):
    """Every entropy that a run makes a generator or key of, in order."""
    seen, sequence = [], np.random.SeedSequence

    class Spied(sequence):
        def __init__(self, entropy=None, **options):
            if entropy is not None:
                seen.append(filled(entropy))
            super().__init__(entropy, **options)

    monkeypatch.setattr(np.random, "SeedSequence", Spied)
    return seen


@pytest.mark.parametrize("name", ["image", "text", "drop", "generate", "prompted", "language_model"])
def test_no_stream_of_a_run_is_made_twice(name, tmp_path, entropies):
    """Noise, each step's draws and each step's augmentation: what is made once a run has entropy of its own."""
    run(CASES[name], tmp_path)
    assert len(entropies) > 4
    assert len(set(entropies)) == len(entropies)


@pytest.mark.parametrize("name", ["zeroth", "prompted_zeroth"])
def test_directions_are_made_again_and_are_no_other_stream(name, tmp_path, entropies):
    """A direction is added, taken off twice and added back; draws and noise are made once."""
    run(CASES[name], tmp_path)
    counts = {entropy: entropies.count(entropy) for entropy in entropies}
    kinds = {entropy[1] for entropy, count in counts.items() if count > 1}
    assert len(kinds) == 1
    assert not kinds & {entropy[1] for entropy, count in counts.items() if count == 1}


def test_a_planted_augmentation_on_the_noises_stream_is_seen(tmp_path, entropies, monkeypatch):
    monkeypatch.setattr(image_classification, "_AUGMENTING", 3)
    run(CASES["image"], tmp_path)
    assert len(set(entropies)) < len(entropies)


def attached(monkeypatch):
    """Mechanisms of all methods that a run attaches, in order."""
    seen, attach = [], methods.attach

    def spied(engine, model, optimizer, plan, *args, **options):
        seen.append(plan)
        return attach(engine, model, optimizer, plan, *args, **options)

    monkeypatch.setattr(methods, "attach", spied)
    return seen


def must_be_apart(plans):
    """Seeds, what they draw, and the first step's noise."""
    assert len({plan.seed for plan in plans}) == len(plans)
    for one, other in itertools.combinations(plans, 2):
        for a, b in itertools.product(batches(one), batches(other)):
            assert not (len(a) > 2 and np.array_equal(a, b))
        assert abs(float(torch.corrcoef(torch.stack([first_noise(one), first_noise(other)]))[0, 1])) < 0.1


def first_noise(plan):
    model = torch.nn.Linear(50, 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = Mechanism(Sampling("poisson", 80, 12.0), 1, Clipping(bound=1.0), noise_multiplier=1.0, seed=plan.seed)
    handle = engines.attach("bookkeeping", model, optimizer, plain)
    optimizer.step()
    handle.detach()
    return model.weight.grad.flatten()


def test_phases_of_a_run_draw_and_release_apart(tmp_path, monkeypatch):
    plans = attached(monkeypatch)
    run(CASES["drop"], tmp_path)
    monkeypatch.undo()
    assert [plan.steps for plan in plans] == [1, 3]
    must_be_apart(plans)


def test_teacher_student_and_phases_have_different_seeds():
    """Over seeds and stages: no two share draws or noise, and none is another run's plain seed."""
    over = {"student": {"layers": 1, "start": "teacher"}, "teacher": {}, "distil": {"weight": 0.5}}
    student_settings = parse(compress.Settings, COMPRESS | over | {"split": {"teacher": 0.5, "student": 0.5}}, "test")
    seen = []
    for seed in range(20):
        teacher = parse(compress.Settings, student_settings.of_teacher(), "teacher").plan(80, 80, seed)
        student = student_settings.plan(80, 80, seed)
        seen += [plan.seed for stage in (teacher, student) for plan in phases(stage, [1, 1, 2])]
    assert len(set(seen)) == len(seen) == 20 * 2 * 3


def test_planted_phases_of_one_seed_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("dpbench.privacy.composition.stage_seed", lambda seed, stage: seed)
    plans = attached(monkeypatch)
    run(CASES["drop"], tmp_path)
    with pytest.raises(AssertionError):
        must_be_apart(plans)


def test_seeds_of_stages_are_not_small_numbers_of_tables():
    assert min(stage_seed(seed, f"{stage}") for seed in range(50) for stage in ("student", "phase 1", "phase 2")) > 2**32


def test_public_distillation_has_a_stream_of_its_own(tmp_path, entropies):
    """Of a run of its own, whose seed is that of others: its stream is that of public directions, and none of noise or draws."""
    public_settings = {
        "model": "tiny_bert",
        "student_layers": 1,
        "steps": 1,
        "batch_size": 2,
        "max_length": 16,
        "learning_rate": 1e-3,
    }
    public_student.run(parse(public_student.Settings, public_settings, "test"), context_of(CASES["text"], tmp_path))
    assert {entropy[1] for entropy in entropies} == {4}

"""Adaptive thresholds in attached engines: joint sensitivity, noise, which bounds clip what, and planted faults."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from checks import pairs
from small_models import Language, data, losses, mechanism, relative
from torch import nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.methods.engines.thresholds import Thresholds
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.mechanism import noise_stds

ADAPTIVE = Adaptive(0.5, rate=0.3, budget=0.1)
PAIRS = [p for p in pairs() if plugins.get("engine", p.values[0]).extra.get("adaptive")]


def attach(name="fused", scope="per_layer", model=None, adaptive=ADAPTIVE, lr=0.1, dtype=torch.float32, steps=1000, **options):
    model = (model or Language()).to(dtype)
    plan = mechanism(scope, adaptive=adaptive, steps=steps, **options)
    return engines.attach(name, model, torch.optim.SGD(model.parameters(), lr=lr), plan)


def step(handle, *batches):
    """One logical step; the released gradient in fp64."""
    for batch in batches:
        handle.backward(losses, batch)
    handle.optimizer.step()
    gradient = torch.cat([p.grad.double().flatten() for p in handle.trainable.values()])
    handle.optimizer.zero_grad()
    return gradient


def counts_of(handle):
    """Centred counts of the step so far; norms may still be on their way from the device, and are waited for."""
    handle.counted()
    return handle.thresholds.centred()


# Joint sensitivity of (sums, counts), by brute force over the norms of the example that is added or removed.


class Uncentred(Thresholds):
    """A planted fault: how many are within the bound, not how many more than half."""

    def centred(self):
        return [value + self._examples / 2 for value in super().centred()]


class WithoutRoot(Adaptive):
    """A planted fault: counts with the noise that one alone would need."""

    def count_std(self, noise_multiplier, groups):
        return super().count_std(noise_multiplier, 1)


def worst(kind=Thresholds, adaptive=ADAPTIVE, bounds=(0.5, 1.0, 4.0), sigma=1.7, allocation="global"):
    """Longest change of a step's release by one example, whitened by its noise, x noise multiplier: 1 is what is paid for."""
    plan = mechanism("per_layer", noise_multiplier=sigma, thresholds=list(bounds), adaptive=adaptive)
    stds = noise_stds(bounds, plan.gradient_noise_multiplier, allocation, [5, 7, 11])
    at_and_around = [[0.0, np.nextafter(c, 0), c, np.nextafter(c, 9), 100 * c, math.inf, math.nan] for c in bounds]
    others = torch.tensor([[0.1, 2.0, 3.0], [0.5, 1.0, 9.0]], dtype=torch.float64)
    limit = torch.tensor(bounds, dtype=torch.float64)

    def counts(norms):
        thresholds = kind(plan, "abc", range(3), bounds)
        thresholds.note(norms <= limit)
        return thresholds.centred(), thresholds.std

    longest = 0.0
    for added in itertools.product(*at_and_around):
        norms = torch.tensor([added], dtype=torch.float64)
        (without, std), (with_it, _) = counts(others), counts(torch.cat([others, norms]))
        of_counts = [(a - b) / std for a, b in zip(with_it, without, strict=True)]
        # The worst direction: Abadi clipping leaves min(norm, C), a non-finite group nothing.
        of_sums = [(min(n, c) if math.isfinite(n) else 0.0) / s for n, c, s in zip(added, bounds, stds, strict=True)]
        longest = max(longest, math.hypot(*of_counts, *of_sums))
    return longest * sigma


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
@pytest.mark.parametrize("budget", [0.01, 0.1, 0.9])
def test_one_example_moves_sums_and_counts_by_what_is_paid_for(budget, allocation):
    """At most, and at worst exactly: nothing is given away."""
    assert worst(adaptive=Adaptive(0.5, budget=budget), allocation=allocation) == pytest.approx(1.0, rel=1e-12)


def test_planted_uncentred_counts_are_too_sensitive():
    """1 instead of 1/2: 1 - r + 4 r = 1.3 times the squared length at r = 0.1."""
    assert worst(Uncentred) == pytest.approx(math.sqrt(1.3), rel=1e-12)


def test_planted_counts_with_too_little_noise_are_seen():
    """1 - r + 3 r = 1.2 times the squared length at r = 0.1 and three groups."""
    assert worst(adaptive=WithoutRoot(0.5, budget=0.1)) == pytest.approx(math.sqrt(1.2), rel=1e-12)


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_one_example_moves_the_counts_of_an_engine_by_the_same(name, scope):
    """Whatever it is: not clipped, clipped in every group, or not finite."""
    handle, batch = attach(name, scope), data(4)
    for weight in (0.0, 0.3, 50.0, math.nan):
        batch["weight"][3] = weight
        counts = []
        for kept in (4, 3):
            handle.thresholds._forget()
            handle.backward(losses, {key: value[:kept] for key, value in batch.items()})
            counts.append(counts_of(handle))
        moved = [a - b for a, b in zip(*counts, strict=True)]
        assert all(abs(m) == 0.5 for m in moved)
        if weight in (0.0, 50.0) or math.isnan(weight):
            assert set(moved) == ({0.5} if weight == 0.0 else {-0.5})


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_engines_count_as_the_oracle_in_micro_batches_too(name, scope):
    batch = data(6)
    batch["weight"][4] = math.nan
    parts = [{k: v[:1] for k, v in batch.items()}, {k: v[1:4] for k, v in batch.items()}, {k: v[4:] for k, v in batch.items()}]
    oracle, handle = attach("loop", scope, dtype=torch.float64), attach(name, scope)
    oracle.backward(losses, batch)
    for part in parts:
        handle.backward(losses, part)
    expected_counts = counts_of(oracle)
    assert counts_of(handle) == expected_counts
    assert len(set(expected_counts)) > 1 or scope == "flat", "the data do not tell the groups apart"


@pytest.mark.parametrize("name", ["loop", "vmap", "fused", "bookkeeping"])
def test_a_layer_that_is_not_reached_has_norm_zero(name):
    """Whether another example of the physical batch reaches a layer must not change what this one adds."""

    class Idle(Language):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(2, 2)

    handle = attach(name, model=Idle())
    handle.backward(losses, data(4))
    handle.backward(losses, data(2))
    assert counts_of(handle)[handle.thresholds.labels.index("idle")] == 3.0


@pytest.mark.parametrize("name", ["fused", "loop"])
def test_padding_is_not_counted(name):
    handle = attach(name)
    handle.backward(losses, data(6), real=2)
    two = counts_of(handle)
    handle.thresholds._forget()
    handle.backward(losses, {key: value[:2] for key, value in data(6).items()})
    assert counts_of(handle) == two


# Which bounds clip what.


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_a_step_is_clipped_and_gets_noise_by_its_own_thresholds(name, scope, allocation):
    """Every step is that of fixed thresholds given as the trajectory says, physical batches and noise stds alike."""
    handle = attach(name, scope, allocation=allocation, noise_multiplier=0.0, lr=0.5)
    noisy = attach(name, scope, allocation=allocation, noise_multiplier=2.0)
    batches = [data(4), data(3, seed=1)]
    for _ in range(3):
        model, bounds = copy.deepcopy(handle.model), list(handle.bounds)
        gradient = step(handle, *batches)
        fixed = attach(name, scope, model, None, allocation=allocation, thresholds=bounds)
        assert relative(gradient, step(fixed, *batches)) < 1e-6
        assert handle.sensitivity == pytest.approx(math.hypot(*handle.bounds))
        fixed_handle = attach(
            name, scope, None, None, allocation=allocation, thresholds=noisy.bounds, noise_multiplier=2 / math.sqrt(0.9)
        )
        stds = {key: fixed_handle.noise_stds[id(p)] for key, p in fixed_handle.trainable.items()}
        assert {key: noisy.noise_stds[id(p)] for key, p in noisy.trainable.items()} == pytest.approx(stds, rel=1e-12)
        step(noisy, *batches)
    assert len({tuple(bounds) for bounds in handle.thresholds.trajectory}) == 4


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_engines_share_a_trajectory(name, scope):
    """The same seed, the same counts, and weights that differ by rounding."""
    oracle, handle = (attach(n, scope, noise_multiplier=0.5, lr=0.01) for n in ("loop", name))
    for number in range(4):
        step(oracle, data(6, seed=number)), step(handle, data(6, seed=number))
    assert handle.thresholds.trajectory == oracle.thresholds.trajectory


def test_gradient_noise_follows_the_thresholds_of_the_step():
    """Empty batches: the std follows the trajectory. 2 000 elements give it to 5 / sqrt(4 000)."""
    model = nn.Sequential(nn.Linear(40, 50, bias=False), nn.Linear(50, 40, bias=False))
    handle = attach(model=model, noise_multiplier=1.5, adaptive=Adaptive(0.9, rate=2.0, budget=0.1), allocation="equal")
    for _ in range(5):
        bounds = list(handle.bounds)
        handle.optimizer.step()
        for layer, bound in zip(model, bounds, strict=True):
            expected_std = 1.5 / math.sqrt(0.9) * math.sqrt(2) * bound / 4.0
            assert float(layer.weight.grad.std()) == pytest.approx(expected_std, rel=5 / math.sqrt(4000))
        handle.optimizer.zero_grad()
    first, last = handle.thresholds.trajectory[0], handle.thresholds.trajectory[-1]
    assert max(abs(math.log(b / a)) for a, b in zip(first, last, strict=True)) > 0.5, "the thresholds hardly moved"


@pytest.mark.parametrize(("budget", "raised"), [(0.01, 1.00504), (0.1, 1.05409)])
def test_adaptive_thresholds_only_raise_the_gradient_noise(budget, raised):
    """The sums' stream is not touched by that of the counts: the same numbers, 1 / sqrt(1 - r) times as large."""
    fixed = attach(adaptive=None, noise_multiplier=2.0)
    adaptive = attach(adaptive=Adaptive(0.5, budget=budget), noise_multiplier=2.0)
    assert relative(step(adaptive), raised * step(fixed)) < 1e-5  # as many digits as `raised` has


# The noise of the counts.


def released_noise(handle, steps=500):
    """[steps, K] noise of the counts over its std, of empty batches."""
    for _ in range(steps):
        handle.optimizer.step()
        handle.optimizer.zero_grad()
    return (torch.tensor(handle.thresholds.fractions, dtype=torch.float64) - 0.5) * 4.0 / handle.thresholds.std


def is_one_draw(noise):
    """Standard normal, and independent between steps and groups, to 5 standard errors."""
    count = noise.numel()
    one = abs(float(noise.mean())) < 5 / math.sqrt(count) and abs(float(noise.std()) - 1) < 5 / math.sqrt(2 * count)
    steps = torch.stack([noise[:-1].flatten(), noise[1:].flatten()])
    groups = torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()])
    return one and all(abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(pair.shape[1]) for pair in (steps, groups))


@pytest.mark.parametrize("randomness", ["seeded", "secret"])
def test_counts_get_their_noise_on_empty_batches_too(randomness):
    handle = attach(model=Language(), noise_multiplier=1.5, adaptive=Adaptive(0.5, rate=1e-3), randomness=randomness)
    assert handle.thresholds.std == pytest.approx(1.5 / 2 * math.sqrt(5 / 0.01))
    noise = released_noise(handle)
    assert noise.shape == (500, 5)
    assert is_one_draw(noise)


def test_seeds_and_secrets_differ_and_physical_batches_do_not():
    def released(*batches, **options):
        handle = attach(noise_multiplier=1.0, **options)
        step(handle, *batches)
        return handle.thresholds.fractions[0]

    full_batch = data(6)
    parts = [{k: v[:2] for k, v in full_batch.items()}, {k: v[2:] for k, v in full_batch.items()}]
    assert released(full_batch) == released(*parts)
    assert released(full_batch) != released(full_batch, seed=1)
    assert released(full_batch, randomness="secret") != released(full_batch, randomness="secret")


class Raw(Thresholds):
    """A planted fault: the bounds follow the counts themselves, what is released has noise."""

    def move(self, release):
        raw = [0.5 + value / self._expected for value in self.centred()]
        super().move(release)
        self.trajectory[-1] = self.adaptive.moved(self.trajectory[-2], raw, self._total_bound)
        return list(self.trajectory[-1])


class Bare(Thresholds):
    """A planted fault: the counts are released as they are."""

    def move(self, release):
        return super().move(lambda counts, std: counts)


def follows_from_releases(thresholds):
    """Whether the trajectory is what anybody can compute from the released fractions alone."""
    eta, q = thresholds.adaptive.rate, thresholds.adaptive.quantile
    steps = zip(thresholds.trajectory, thresholds.fractions, thresholds.trajectory[1:], strict=False)
    return all(
        math.isclose(after, before * math.exp(-eta * (fraction - q)), rel_tol=1e-12)
        for befores, fractions, afters in steps
        for before, fraction, after in zip(befores, fractions, afters, strict=True)
    )


def trained(kind):
    handle = attach(noise_multiplier=1.0)
    old = handle.thresholds
    handle.thresholds = kind(handle.mechanism, old.labels, old._local_groups, handle.bounds)
    for number in range(3):
        step(handle, data(5, seed=number))
    return handle


def test_the_trajectory_is_made_of_releases_alone():
    assert follows_from_releases(trained(Thresholds).thresholds)


def test_planted_bounds_from_raw_counts_are_seen():
    assert not follows_from_releases(trained(Raw).thresholds)


def test_planted_counts_without_noise_are_seen():
    bare = trained(Bare)
    assert follows_from_releases(bare.thresholds)
    assert not is_one_draw(released_noise(bare)[-500:])


def test_first_bounds_are_the_mechanisms_counts_are_forgotten():
    handle = trained(Thresholds)
    assert handle.thresholds.trajectory[0] == pytest.approx([0.5 / math.sqrt(5)] * 5)
    assert counts_of(handle) == [0.0] * 5
    assert handle.bounds == handle.thresholds.trajectory[-1]
    assert len(handle.thresholds.trajectory) == len(handle.thresholds.fractions) + 1 == handle.steps + 1
    assert handle.thresholds.last["thresholds"] == handle.thresholds.trajectory[2]
    assert list(handle.thresholds.facts["thresholds"]) == ["embed", "block.norm", "block.up", "block.down", "head"]


# Where the bounds go.


class Two(nn.Module):
    """A loss whose gradients are its inputs: per-example norms are known."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 1, bias=False), nn.Linear(4, 1, bias=False)

    def forward(self, a, b):
        return self.a(a) + self.b(b)


def linear(model, batch):
    return model(batch["a"], batch["b"])[:, 0]


@pytest.mark.parametrize(("name", "scope", "groups"), [
    ("fused", "per_layer", 2), ("bookkeeping", "per_device", 2), ("ghost", "flat", 1), ("vmap", "per_tensor", 2),
    ("bookkeeping", "per_block", 2),
])  # fmt: skip
def test_bounds_of_an_engine_converge_to_a_known_quantile(name, scope, groups):
    """Without noise; to the norms of the examples next to the quantile, of 101."""
    generator = torch.Generator().manual_seed(0)
    batch = {key: torch.randn(101, size, generator=generator) * scale for key, size, scale in (("a", 3, 0.2), ("b", 4, 5.0))}
    norms = [batch[key].norm(dim=1).double() for key in ("a", "b")]
    norms = norms if groups == 2 else [torch.stack(norms).norm(dim=0)]
    handle = attach(name, scope, Two(), Adaptive(0.7, rate=0.5), lr=0.0, expected=100.0)
    for _ in range(200):
        handle.backward(linear, batch)
        handle.optimizer.step()
        handle.optimizer.zero_grad()
    for bound, group_norms in zip(handle.bounds, norms, strict=True):
        assert group_norms.quantile(0.67) <= bound <= group_norms.quantile(0.73)


def test_rescaled_bounds_keep_the_sensitivity():
    handle = attach(adaptive=Adaptive(0.5, rescale=True), noise_multiplier=1.0, bound=0.7)
    for number in range(4):
        step(handle, data(5, seed=number))
        assert handle.sensitivity == pytest.approx(0.7, rel=1e-12)
    assert len({round(b, 6) for b in handle.bounds}) > 1


def test_a_step_that_stops_releases_no_counts():
    handle = attach(noise_multiplier=1.0)
    handle.backward(losses, data(3))
    parameter = next(iter(handle.trainable.values()))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(DpbenchError, match="from outside the engine"):
        handle.optimizer.step()
    assert handle.thresholds.fractions == []

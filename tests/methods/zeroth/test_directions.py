"""Directions: the same again from their seed, of the right law, apart from the noise, and put back as they were."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_directions import ReferenceDirections

from dpbench.errors import DpbenchError
from dpbench.methods.zeroth.directions import Directions, _Streams, check_perturbation
from dpbench.privacy import sampling
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.privacy.noise import STREAMS, Noise


def weights(dtype=torch.float64, sizes=((300, 40), (40,), (3, 5, 7))):
    return [torch.zeros(size, dtype=dtype) for size in sizes]


def direction(seed=0, step=0, **options):
    """u_step as one vector: the weights start at zero."""
    moved_weights = weights()
    Directions(moved_weights, seed, **options).add_(step, 1.0)
    return torch.cat([w.flatten() for w in moved_weights])


@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
def test_a_direction_depends_on_step_and_seed_alone(kind):
    assert torch.equal(direction(kind=kind), direction(kind=kind))
    for other in (direction(kind=kind, step=1), direction(kind=kind, seed=1)):
        assert abs(float(torch.corrcoef(torch.stack([direction(kind=kind), other]))[0, 1])) < 0.05


def test_directions_are_gaussian_or_of_spherical_length():
    u = direction()
    assert abs(float(u.mean())) < 0.04
    assert abs(float(u.var()) - 1) < 0.05
    assert abs(float((u**4).mean()) - 3) < 0.3
    size = len(u)
    sphere = direction(kind="sphere")
    assert float(sphere.norm()) == pytest.approx(math.sqrt(size), rel=1e-12)
    assert torch.allclose(sphere / sphere.norm(), u / u.norm(), rtol=1e-12, atol=0)
    assert Directions(weights(), 0).length(0) == pytest.approx(float(u.norm()), rel=1e-12)
    assert Directions(weights(), 0, "sphere").length(0) == math.sqrt(size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
def test_in_place_equals_the_reference(dtype, kind):
    ways = []
    for kind_of_directions in (Directions, ReferenceDirections):
        torch.manual_seed(0)
        parameters = [torch.randn(size).to(dtype) for size in ((300, 41), (40,), (3, 5, 7))]
        parameters.append(torch.randn(30, 20).to(dtype).T)  # whose elements lie in another order
        directions = kind_of_directions(parameters, 3, kind)
        directions.add_(5, 1e-2)
        directions.add_(6, -3e-2)
        ways.append(torch.cat([w.flatten().double() for w in parameters]))
    tolerance = 4 * torch.finfo(dtype).eps
    assert torch.allclose(*ways, rtol=tolerance, atol=tolerance)
    assert not torch.equal(ways[0], torch.zeros_like(ways[0]))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.floats(1e-4, 1e-1))
def test_there_and_back_leaves_the_weights(seed, step, size):
    torch.manual_seed(1)
    parameters = [torch.randn(17, 5, dtype=torch.float64)]
    before = parameters[0].clone()
    directions = Directions(parameters, seed)
    directions.add_(step, size)
    assert not torch.equal(parameters[0], before)
    directions.add_(step, -2 * size)
    directions.add_(step, size)
    assert torch.allclose(parameters[0], before, rtol=0, atol=1e-13)


def test_directions_say_nothing_of_the_noise():
    """The published code draws its noise from the generator that the direction's seed has just reset (deviation ZERO-2)."""
    plan = Mechanism(Sampling("poisson", 1000, 10), 5, Clipping(bound=1.0), 1.0, seed=7)
    noise = np.array(Noise(plan).on_counts([0.0] * 4096, 1.0))
    numbers = torch.zeros(4096, dtype=torch.float64)
    for step in range(5):
        numbers.zero_()
        Directions([numbers], 7).add_(step, 1.0)
        assert abs(np.corrcoef(noise, numbers.numpy())[0, 1]) < 0.08
        assert not np.isin(np.round(noise, 9), np.round(numbers.numpy(), 9)).any()


def seeds_of_all_streams(plan):
    """Name -> 63 bits of the key of every stream that a mechanism has, over ranks, steps, epochs and tensors."""
    keys = {}
    for rank in range(3):
        keys |= {f"noise {k} of rank {rank}": Noise(plan, rank)._key(k) for k in range(STREAMS + 3)}
    for step in range(4):
        keys |= {f"direction {k} of step {step}": _Streams(plan.seed, step)._key(k) for k in range(STREAMS + 6)}
        for coins in (1, 2):
            sequence = sampling._generator(plan, coins, step).bit_generator.seed_seq
            keys[f"coins {coins} of {step}"] = sequence.generate_state(4, np.uint32).astype("<u4").tobytes()
    seeds = {name: int.from_bytes(key[:8], "little") >> 1 for name, key in keys.items()}
    directions = Directions([torch.zeros(1)], plan.seed)
    return seeds | {f"rounding of {k}": directions.roundings(k, torch.device("cpu")).initial_seed() for k in range(4)}


@pytest.mark.parametrize("seed", [0, 1, 3, 4, 2**31])
def test_noise_coins_directions_and_rounding_share_no_numbers(seed):
    """SeedSequence takes (seed, 3, k) and (seed, 3, k, 0) for one: a stream number that two share is one stream."""
    seeds = seeds_of_all_streams(Mechanism(Sampling("poisson", 1000, 10), 5, Clipping(bound=1.0), 1.0, seed=seed))
    assert len(set(seeds.values())) == len(seeds)


def test_a_directions_first_numbers_are_not_the_noises():
    """Of every step and tensor against every stream of noise, by the numbers themselves."""
    plan = Mechanism(Sampling("poisson", 1000, 10), 5, Clipping(bound=1.0), 1.0, seed=7)
    noise = [torch.zeros(3000, dtype=torch.float64) for _ in range(6)]
    for rank in range(3):
        source = Noise(plan, rank)
        for released in noise[2 * rank : 2 * rank + 2]:
            source.release_([(released, 1.0)], 1.0)
    seen = set(torch.cat(noise).round(decimals=9).tolist())
    assert len(seen) == 18_000
    for step in range(4):
        first_numbers = [torch.zeros(3000, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)]
        Directions(first_numbers, 7).add_(step, 1.0)
        numbers = set(torch.cat(first_numbers).round(decimals=9).tolist())
        assert len(numbers) == 3050
        assert not numbers & seen
        seen |= numbers


@pytest.mark.parametrize(
    ("size", "message"), [(0.0, "not a positive"), (-1e-3, "not a positive"), (float("nan"), "not a positive")]
)
def test_a_perturbation_that_is_none_is_refused(size, message):
    with pytest.raises(DpbenchError, match=message):
        check_perturbation([torch.randn(10)], size)


def test_a_perturbation_lost_in_the_weights_precision_is_refused():
    parameters = [torch.full((100,), 0.5, dtype=torch.bfloat16)]
    with pytest.raises(DpbenchError, match=r"0\.0001 leaves 100 % of the weights unchanged in bfloat16"):
        check_perturbation(parameters, 1e-4)
    check_perturbation(parameters, 1e-2)
    check_perturbation([torch.full((100,), 0.5)], 1e-4)


def test_an_absurd_perturbation_is_refused():
    with pytest.raises(DpbenchError, match="more than ten times a typical weight"):
        check_perturbation([torch.full((100,), 0.01)], 1.0)
    check_perturbation([torch.zeros(100)], 1e-3)  # a head that starts at zero has no typical weight

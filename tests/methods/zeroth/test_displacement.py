"""Half-precision weights go along a direction and come back to the last bit; their step is rounded without bias."""

import copy

import pytest
import torch
from reference_directions import ReferenceDirections
from torch import nn

from dpbench.methods.zeroth.directions import Directions
from dpbench.methods.zeroth.displacement import Displacement, rounded_at_random
from dpbench.methods.zeroth.trainer import ZerothOrder
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.privacy.noise import Noise

HALVES = [torch.float16, torch.bfloat16]


def weights(dtype, std=0.02):
    """Of several layouts and sizes, with what rounding treats in ways of its own."""
    torch.manual_seed(0)
    tensors = [torch.randn(300, 41) * std, torch.randn(40) * std, torch.zeros(30), (torch.randn(30, 20) * std).T]
    tensors.append(torch.tensor([0.0, -0.0, 1e-7, -6e-8, 1.0, 6e4, torch.finfo(torch.float16).max, 2.0**-14]))
    return [*(w.to(dtype) for w in tensors), (torch.randn(8, 8) * std).to(dtype)[:, ::2]]


def kept_bytes(displacement):
    """Of the values that rounding lost, which are kept while the weights are displaced."""
    return sum(t.nbytes for pair in displacement._kept.values() for t in pair)


def bits(tensors):
    return [w.contiguous().view(torch.int16).clone() for w in tensors]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
@pytest.mark.parametrize("directions", [Directions, ReferenceDirections])
def test_there_and_back_is_exact(dtype, kind, directions):
    moved = weights(dtype)
    before = bits(moved)
    displacement = Displacement(directions(moved, 3, kind))
    for step in range(5):
        displacement.move_(step, 1e-3)
        displacement.move_(step, -1e-3)
        displacement.settle_(step, 0.0)
        assert all(torch.equal(a, b) for a, b in zip(before, bits(moved), strict=True))
    displacement.move_(9, 1e-3)
    assert not all(torch.equal(a, b) for a, b in zip(before, bits(moved), strict=True))
    displacement.move_(9, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(moved), strict=True))
    assert kept_bytes(displacement) == 0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("to", [1e-6, 1e-3, 3.0, -1e5])
def test_every_number_of_16_bits_comes_back(dtype, to):
    """Those that are no numbers, infinite or below the smallest normal one included."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    moved = [every.clone()]
    displacement = Displacement(Directions(moved, 11))
    displacement.move_(2, to)
    displacement.move_(2, -to)
    displacement.settle_(2, 0.0)
    assert torch.equal(bits(moved)[0], bits([every])[0])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("to", [1e-3, -1e-3, 0.1])
def test_weights_are_moved_to_the_rounded_sum(dtype, to):
    moved = weights(dtype)
    start = [w.clone() for w in moved]
    directions = Directions(moved, 3)
    numbers = [torch.zeros_like(w, dtype=torch.float32) for w in moved]
    Directions(numbers, 3).add_(7, 1.0)
    displacement = Displacement(directions)
    displacement.move_(7, -to)
    displacement.move_(7, to)
    for now, was, u in zip(moved, start, numbers, strict=True):
        expected = (was.float() + to * u).to(dtype)
        assert torch.allclose(now.float(), expected.float(), rtol=torch.finfo(dtype).eps, atol=6e-8)


def test_what_is_kept_is_a_fraction_of_a_byte_a_weight():
    moved = [torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16()]
    displacement = Displacement(Directions(moved, 0))
    displacement.move_(0, 1e-3)
    assert 0 < kept_bytes(displacement) < 0.35 * moved[0].numel()


@pytest.mark.parametrize("dtype", HALVES)
def test_random_rounding_keeps_exact_values_and_the_mean(dtype):
    generator = torch.Generator().manual_seed(0)
    exact = torch.cat([w.flatten() for w in weights(dtype)])
    kept = rounded_at_random(exact.float(), dtype, generator)
    assert torch.equal(bits([kept])[0], bits([exact])[0])
    for value in (0.0123, -0.0123, 1.0001, -2.00001, 3e-8, -1e-7, 0.99999):
        many = rounded_at_random(torch.full((40_000,), value), dtype, generator)
        seen = many.unique()
        nearest = torch.tensor(value).to(dtype)
        assert len(seen) <= 2
        assert nearest in seen
        assert float((seen.float() - value).abs().max()) <= float(torch.finfo(dtype).eps * abs(value)) + 6e-8
        spread = float(many.double().std())
        assert abs(float(many.double().mean()) - float(torch.tensor(value))) <= 5 * spread / 200 + 1e-12


def test_what_is_no_number_or_too_large_stays_so():
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e9])
    kept = rounded_at_random(values, torch.float16, torch.Generator().manual_seed(0))
    assert kept[0].isnan()
    assert kept[1:].tolist() == [float("inf"), -float("inf"), float("inf")]


def small(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    for p in model.parameters():
        p.data.normal_(0, 0.02)
    return model.to(dtype)


def losses(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")


def plan(noise=0.0, bound=0.5):
    return Mechanism(Sampling("poisson", 1000, 8.0), 300, Clipping(bound=bound), noise, seed=3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", ["dpzero", "dpgd_0th"])
def test_steps_of_rate_0_leave_half_precision_weights(dtype, method):
    model = small(dtype)
    before = copy.deepcopy(model)
    batch = torch.randn(8, 64).to(dtype), torch.randint(0, 8, (8,))
    optimizer = ZerothOrder(method, model, plan(1.0), 0.0)
    for _ in range(30):
        optimizer.step(losses, [batch])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_updates_below_half_a_last_place_hold_in_the_mean(dtype):
    moved = [torch.full((200_000,), 1.0).to(dtype)]
    change = torch.finfo(dtype).eps / 50
    displacement = Displacement(Directions(moved, 0))
    numbers = torch.zeros(200_000)
    Directions([numbers], 0).add_(0, 1.0)
    displacement.move_(0, 1e-2)
    displacement.settle_(0, change)
    moved_by = (moved[0].double() - 1) @ numbers.double()
    assert float(moved_by) / (change * float(numbers.square().sum())) == pytest.approx(1.0, abs=0.15)


def test_vector_noise_of_half_precision_is_added_before_rounding():
    """Noise far below the distance of two numbers is still there: some weights move, which rounding by itself would not do."""
    moved = [torch.full((4000,), 1.0).bfloat16()]
    mechanism = plan(1.0)
    noise = Noise(mechanism)
    Displacement(Directions(moved, 0)).settle_(0, 0.0, lambda wide: noise.release_([(wide, 2.0**-10)], 1.0))
    shares = [float((moved[0] == value).float().mean()) for value in (1 - 2.0**-8, 1.0, 1 + 2.0**-7)]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.02


def test_wide_weights_are_moved_by_three_additions_as_ever():
    """To the bit: what was recorded stays true."""
    torch.manual_seed(0)
    ways = [[torch.randn(30, 20), torch.randn(7, dtype=torch.float64)] for _ in range(1)]
    ways.append([w.clone() for w in ways[0]])
    displacement, plain = Displacement(Directions(ways[0], 5)), Directions(ways[1], 5)
    for step in range(3):
        displacement.move_(step, 1e-3)
        displacement.move_(step, -1e-3)
        displacement.settle_(step, -(0.1 * 0.7))
        plain.add_(step, 1e-3)
        plain.add_(step, -2e-3)
        plain.add_(step, 1e-3 - 0.1 * 0.7)
    assert all(torch.equal(a, b) for a, b in zip(*ways, strict=True))


def test_a_model_of_mixed_dtypes_is_moved_in_each_its_own_way():
    model = small(torch.float32)
    model[2].to(torch.bfloat16)
    model.forward = None
    before = bits(model[2].parameters())
    wide = model[0].weight.detach().clone()

    def across(model, batch):
        return losses(lambda x: model[2](torch.tanh(model[0](x)).bfloat16()), batch)

    batch = torch.randn(8, 64), torch.randint(0, 8, (8,))
    optimizer = ZerothOrder("dpzero", model, plan(), 0.0)
    for _ in range(3):
        optimizer.step(across, [batch])
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model[2].parameters()), strict=True))
    assert torch.allclose(wide, model[0].weight, rtol=0, atol=1e-7)
    optimizer.rate = 1.0
    optimizer.step(across, [batch])
    assert not torch.equal(wide, model[0].weight)
    assert not all(torch.equal(a, b) for a, b in zip(before, bits(model[2].parameters()), strict=True))

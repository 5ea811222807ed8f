"""The noise kernel: Philox bit by bit, its distribution, and that no draw comes twice."""

from __future__ import annotations

import math

import pytest
import torch
from guarded import SENTINEL
from scipy import stats
from small_models import mechanism

from dpbench.kernels.noise.triton import noise_add_
from dpbench.privacy.noise import Noise

WORD = 1 << 32


def philox(key, counter):
    """Philox-4x32-10 in plain integers."""
    (a, b, c, d), low, high = counter, key % WORD, key >> 32
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ low, right % WORD, (left >> 32) ^ d ^ high, left % WORD
        low, high = (low + 0x9E3779B9) % WORD, (high + 0xBB67AE85) % WORD
    return a, b, c, d


def normal(radius, angle):
    length = math.sqrt(-2 * math.log(radius / WORD + 0.5 / WORD))
    turn = 2 * math.pi * (angle - WORD if angle >= WORD // 2 else angle) / WORD
    return length * math.cos(turn), length * math.sin(turn)


def draw(count, key=7, number=0, step=0, std=1.0, scale=1.0):
    into = torch.zeros(count)
    noise_add_(into, std, scale, key, number, step)
    return into


def test_the_reference_gives_the_known_answer():
    """Of the authors' test vectors, counter and key zero."""
    assert philox(0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@pytest.mark.parametrize("key", [0, 1, 16, 7 << 40, -1, -(1 << 63), (1 << 63) - 1])
def test_every_number_is_philox_in_fp64(key):
    numbers = draw(4096 + 5, key, number=3, step=9)
    for place in (0, 1, 511):
        words = philox(key % (1 << 64), (place, 0, 3, 9))
        expected_numbers = (*normal(*words[:2]), *normal(*words[2:]))
        assert [float(numbers[place + 512 * k]) for k in range(4)] == pytest.approx(expected_numbers, rel=1e-5, abs=1e-5)
    words = philox(key % (1 << 64), (512, 0, 3, 9))
    assert float(numbers[2048]) == pytest.approx(normal(*words[:2])[0], rel=1e-5, abs=1e-5)


def test_the_numbers_are_normal_and_independent():
    numbers = draw(200_000).double()
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3
    for transformed in (numbers, numbers**2):
        for lag in (1, 512, 1024, 2048):
            pair = torch.stack([transformed[:-lag], transformed[lag:]])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 1.2e-2  # five standard errors
    assert float(numbers.abs().max()) < 6.8


def test_no_draw_repeats_across_tensors_steps_and_keys():
    draws = [draw(3000, key, number, step) for key in (1, 2) for number in (0, 1) for step in (0, 1)]
    every = torch.cat(draws)
    assert len(every.unique()) > 0.999 * len(every)  # of fp32 numbers a few agree by chance
    assert torch.equal(draws[0], draw(3000, 1, 0, 0))


@pytest.mark.parametrize("count", [0, 1, 3, 511, 2048, 2049])
def test_the_formula_and_nothing_beside_it(count):
    room = torch.full((count + 8000,), SENTINEL)
    into = room[4000 : 4000 + count]
    into.copy_(torch.arange(count))
    noise_add_(into, 0.5, 0.25, 7, 0, 0)
    assert torch.allclose(into, (torch.arange(count) + 0.5 * draw(count)) * 0.25, rtol=1e-6, atol=1e-6)
    assert (room[:4000] == SENTINEL).all()
    assert (room[4000 + count :] == SENTINEL).all()


def test_extreme_words_are_finite():
    from dpbench.kernels.noise import triton as ours

    for radius in (0, WORD - 1):
        assert math.isfinite(normal(radius, 0)[0])
    assert ours._LARGEST // 4 == WORD


def release(seed=0, steps=1, std=2.0, randomness="seeded"):
    torch.manual_seed(1)
    noise = Noise(mechanism("per_layer", noise_multiplier=1.0, seed=seed, randomness=randomness), kernels="triton")
    noises = []
    for _ in range(steps):
        sums = [torch.zeros(50, 40), torch.zeros(30, 20).T, torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)]
        sums += [torch.zeros(60, 50)[:, ::2], torch.zeros(()), torch.zeros(33, dtype=torch.float64)]
        noise.release_([(total, std) for total in sums], 4.0)
        noises.append(torch.cat([total.double().flatten() for total in sums]))
    return torch.cat(noises)


def test_every_element_of_every_layout_gets_its_own_noise():
    noises = release(steps=2)
    assert float(noises.std()) == pytest.approx(0.5, rel=0.03)
    assert len(noises.unique()) > 0.999 * len(noises)
    assert torch.equal(release(), release())
    assert not torch.equal(release(), release(seed=1))


def test_secret_noise_never_comes_again():
    one, two = release(steps=2, randomness="secret"), release(steps=2, randomness="secret")
    assert len(torch.cat([one, two]).unique()) > 0.999 * (len(one) + len(two))


def test_without_noise_the_sum_is_divided_alone():
    total = torch.arange(6.0)
    Noise(mechanism("per_layer"), kernels="triton").release_([(total, 0.0)], 4.0)
    assert torch.equal(total, torch.arange(6.0) / 4)

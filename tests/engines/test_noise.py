"""The noise itself: its distribution, its independence, and that every element of every layout gets it."""

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from models import mechanism
from scipy import stats

from dpbench.engines import gaussian
from dpbench.engines.gaussian import Gaussian, Scratch
from dpbench.engines.noise import Noise

KEY = bytes(range(16))


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def _way(request, monkeypatch):
    """Every test twice: with `gaussian.c` and without."""
    if request.param == "numpy":
        monkeypatch.setattr(gaussian, "compiled", lambda: None)
    elif gaussian.compiled() is None:
        pytest.skip("no C compiler here")


def draw(count, dtype=np.float32, key=KEY, piece=gaussian.PIECE, std=1.0):
    stream, values = Gaussian(key), np.zeros(count, dtype)
    scratch = Scratch.inside(np.zeros(Scratch.room_for(piece, dtype), np.uint8), dtype)
    for start in range(0, count, piece):
        stream.perturb_(values[start : start + piece], 1.0, std, scratch)
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_numbers_are_normal_and_independent(dtype):
    found = draw(1_000_000, dtype, piece=1 << 16)
    assert stats.kstest(found, "norm").pvalue > 1e-3
    for transformed in (found, found**2, np.abs(found)):  # neighbours, the two halves of a pair, pieces one after another
        for lag in (1, 1 << 15, 1 << 16):
            assert abs(np.corrcoef(transformed[:-lag], transformed[lag:])[0, 1]) < 5e-3
    assert stats.kurtosis(found) == pytest.approx(0, abs=0.02)
    beyond = np.mean(np.abs(found) > 4)
    assert beyond == pytest.approx(2 * stats.norm.sf(4), rel=0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_box_muller_of_the_keystream_in_fp64(dtype, count):
    half, size = (count + 1) // 2, np.dtype(dtype).itemsize
    stream = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(2 * half * size))
    words = np.frombuffer(stream, f"<u{size}").astype(object)
    uniform = [(float(w) + 0.5) / 2 ** (8 * size) for w in words]
    radius = [math.sqrt(-2 * math.log(u)) for u in uniform[:half]]
    turns = [(float(w) if w < 2 ** (8 * size - 1) else float(w) - 2 ** (8 * size)) / 2 ** (8 * size) for w in words[half:]]
    wanted = [f(2 * math.pi * t) * r for f in (math.cos, math.sin) for r, t in zip(radius, turns, strict=True)][:count]
    assert draw(count, dtype) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_keys_give_other_numbers():
    assert not np.any(draw(1000) == draw(1000, key=bytes(16)))


def test_the_largest_and_smallest_words_are_finite(monkeypatch):
    for byte in (b"\x00", b"\xff"):
        stream, values = Gaussian(KEY), np.zeros(8, np.float32)

        class Constant:
            def update_into(self, zeros, out, byte=byte):
                out[: len(zeros)] = byte * len(zeros)

        stream._stream = Constant()
        stream.perturb_(values, 1.0, 1.0, Scratch.inside(np.zeros(Scratch.room_for(8, "f4"), np.uint8), "f4"))
        assert np.isfinite(values).all()
        assert np.abs(values).max() < 6.8


def sums():
    torch.manual_seed(1)
    wide = torch.randn(6, 10)
    return {
        "large": torch.randn(600, 500),
        "odd": torch.randn(7, 3),
        "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(9, 4).T,
        "gaps": wide[:, ::2],
        "one": torch.randn(()),
        "double": torch.randn(33, dtype=torch.float64),
    }


def release(threads, std=2.0, seed=0):
    made = sums()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        Noise(mechanism("per_layer", noise_multiplier=1.0, seed=seed)).release_([(t, std) for t in made.values()], 4.0)
    finally:
        torch.set_num_threads(before)
    return made


def test_every_element_of_every_layout_gets_its_own_noise():
    found = release(2)
    noise = {name: (4 * found[name] - before) / 2 for name, before in sums().items()}
    flat = torch.cat([value.double().flatten() for value in noise.values()])
    assert len(flat.round(decimals=4).unique()) > 0.1 * len(flat)
    assert (flat.abs() > 1e-6).sum() > len(flat) - 5
    assert float(flat.std()) == pytest.approx(1, rel=0.01)
    small = torch.cat([value.double().flatten() for name, value in noise.items() if name != "large"])
    assert len(small.round(decimals=3).unique()) > 0.8 * len(small)


def test_the_number_of_threads_changes_nothing():
    one, three = release(1), release(3)
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert not torch.equal(one["large"], release(1, seed=1)["large"])


def test_without_noise_the_sum_is_divided_alone():
    found = release(2, std=0.0)
    assert all(torch.allclose(found[name], before / 4) for name, before in sums().items())


def test_a_sum_with_gaps_gets_noise_everywhere_and_nowhere_else():
    whole = torch.zeros(60, 50)
    Noise(mechanism("per_layer", noise_multiplier=1.0)).release_([(whole[:, ::2], 2.0)], 4.0)
    assert (whole[:, ::2] != 0).all()
    assert not whole[:, 1::2].any()

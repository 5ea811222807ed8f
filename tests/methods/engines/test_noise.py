"""The noise itself: its distribution, its independence, and that every element of every layout gets it."""

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats
from small_models import mechanism

from dpbench.privacy import gaussian
from dpbench.privacy.gaussian import Gaussian, Scratch
from dpbench.privacy.noise import Noise, perturb_by_torch_

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
    numbers = draw(1_000_000, dtype, piece=1 << 16)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    for transformed in (numbers, numbers**2, np.abs(numbers)):  # neighbours, the two halves of a pair, pieces one after another
        for lag in (1, 1 << 15, 1 << 16):
            assert abs(np.corrcoef(transformed[:-lag], transformed[lag:])[0, 1]) < 5e-3
    assert stats.kurtosis(numbers) == pytest.approx(0, abs=0.02)
    beyond = np.mean(np.abs(numbers) > 4)
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
    expected_numbers = [f(2 * math.pi * t) * r for f in (math.cos, math.sin) for r, t in zip(radius, turns, strict=True)][:count]
    assert draw(count, dtype) == pytest.approx(expected_numbers, rel=1e-5, abs=1e-6)


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
    noisy_sums = sums()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        Noise(mechanism("per_layer", noise_multiplier=1.0, seed=seed)).release_([(t, std) for t in noisy_sums.values()], 4.0)
    finally:
        torch.set_num_threads(before)
    return noisy_sums


def test_every_element_of_every_layout_gets_its_own_noise():
    released_sums = release(2)
    noise = {name: (4 * released_sums[name] - before) / 2 for name, before in sums().items()}
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
    released_sums = release(2, std=0.0)
    assert all(torch.allclose(released_sums[name], before / 4) for name, before in sums().items())


def test_a_sum_with_gaps_gets_noise_everywhere_and_nowhere_else():
    backing = torch.zeros(60, 50)
    Noise(mechanism("per_layer", noise_multiplier=1.0)).release_([(backing[:, ::2], 2.0)], 4.0)
    assert (backing[:, ::2] != 0).all()
    assert not backing[:, 1::2].any()


def test_a_stream_goes_on_from_a_position():
    """Also from inside a block of the cipher: pieces of odd length end there."""
    full_stream, scratch = Gaussian(KEY), Scratch.inside(np.zeros(Scratch.room_for(64, "f4"), np.uint8), "f4")
    for count in (7, 1, 64, 3):
        before = full_stream.position
        first, again = np.zeros(count, np.float32), np.zeros(count, np.float32)
        full_stream.perturb_(first, 1.0, 1.0, scratch)
        Gaussian(KEY, before).perturb_(again, 1.0, 1.0, scratch)
        assert (first == again).all()
        assert full_stream.position == before + 4 * 2 * ((count + 1) // 2)


def test_a_key_of_other_than_16_bytes_is_refused():
    for size in (0, 4, 24, 32):
        with pytest.raises(ValueError, match="a key of"):
            Gaussian(bytes(size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_noise_by_torch_is_added_once_to_the_scaled_sum(dtype, channels_last):
    """What a device without a kernel of ours gets: scale x sum + N(0, std^2), the sum not divided twice, nor the noise."""
    total = torch.full((40, 10, 10, 10), 12.0, dtype=dtype)
    total = total.to(memory_format=torch.channels_last) if channels_last else total
    perturb_by_torch_(total, 0.25, 0.5, torch.Generator().manual_seed(1))
    assert float(total.mean()) == pytest.approx(3.0, abs=5 * 0.5 / 200)
    assert float(total.std()) == pytest.approx(0.5, rel=5 / math.sqrt(2 * 40_000))
    assert stats.kstest(((total.double() - 3) / 0.5).flatten().numpy(), "norm").pvalue > 1e-3


def test_devices_without_our_kernels_get_the_noise_of_the_others(monkeypatch):
    """`release_` for tensors elsewhere: (sum + N(0, std^2)) / divisor as on the CPU, and the same at every kind of sum."""

    class Elsewhere(torch.Tensor):
        """A CPU tensor that says it is on another device."""

        @property
        def device(self):
            return torch.device("cuda", 0)

    monkeypatch.setattr(Noise, "_by_triton", lambda *_: False)
    real_generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda _device: real_generator("cpu"))
    total = torch.full((40_000,), 12.0).as_subclass(Elsewhere)
    Noise(mechanism("per_layer", noise_multiplier=1.0)).release_([(total, 2.0)], 4.0)
    released = total.as_subclass(torch.Tensor)
    assert float(released.mean()) == pytest.approx(3.0, abs=5 * 0.5 / 200)
    assert float(released.std()) == pytest.approx(0.5, rel=5 / math.sqrt(2 * 40_000))


def test_sums_of_several_dtypes_are_served_in_their_order():
    """Their streams are shared, so the order must be the same in every process, as a set's is not."""
    results = {}
    for dtypes in ([torch.float32, torch.float64], [torch.float64, torch.float32]):
        totals = {dtype: torch.zeros(9, dtype=dtype) for dtype in dtypes}
        Noise(mechanism("per_layer", noise_multiplier=1.0)).release_([(t, 1.0) for t in totals.values()], 1.0)
        first = torch.zeros(9, dtype=dtypes[0])
        Noise(mechanism("per_layer", noise_multiplier=1.0)).release_([(first, 1.0)], 1.0)
        assert torch.equal(totals[dtypes[0]], first)
        results[dtypes[0]] = totals
    assert not torch.equal(results[torch.float32][torch.float64], results[torch.float64][torch.float64])

"""Streams of noise, coins and directions are apart from each other, whatever the numbers."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpbench.methods.zeroth.directions import Directions
from dpbench.privacy import noise
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.privacy.noise import STREAMS, Noise
from dpbench.privacy.sampling import batches
from dpbench.privacy.streams import LARGEST_NUMBER, LARGEST_SEED, Role, key_of, sequence

SEEDS = sorted({0, 1, 2, 3, 4, 5, 2**32 - 1, 2**32, *(s + (role << 32) for s in (0, 1, 3) for role in Role), 2**40, 2**52 + 3})
SMALL = [0, 1, 2, 3, 4, 5, 6, 7]
PARTS = [*range(STREAMS + 3), 16, 17, 18]


def every_stream():
    """All kinds in use, over seeds, steps, ranks (stages too), parts (threads, devices, counts) and tensors."""
    for seed in SEEDS:
        for step in SMALL:
            yield seed, Role.SAMPLING, step
            yield seed, Role.SHUFFLING, step
        for part, rank in itertools.product(PARTS, SMALL):
            yield seed, Role.NOISE, part, rank
        for part, step in itertools.product(range(STREAMS + 8), SMALL):
            yield seed, Role.DIRECTIONS, part, step


def test_all_streams_in_use_are_pairwise_apart():
    """By what a generator or a cipher is really seeded with."""
    keys = defaultdict(list)
    for stream in every_stream():
        keys[key_of(*stream)].append(stream)
    assert [streams for streams in keys.values() if len(streams) > 1] == []
    shortened = {key[:8] for key in keys}  # what Triton and torch are seeded with
    assert len(shortened) == len(keys)


numbers = st.integers(0, LARGEST_NUMBER)
seeds = st.one_of(
    st.integers(0, 9), st.integers(0, LARGEST_SEED), st.builds(lambda a, b: a + (b << 32), numbers, st.integers(0, 300))
)
streams = st.one_of(
    st.tuples(seeds, st.sampled_from([Role.SAMPLING, Role.SHUFFLING]), numbers),
    st.tuples(seeds, st.sampled_from([Role.NOISE, Role.DIRECTIONS]), numbers, numbers),
)


@given(streams, streams)
def test_any_two_streams_are_apart(one, other):
    if one != other:
        assert key_of(*one) != key_of(*other)


@given(seeds, numbers)
def test_rank_0_draws_what_a_process_alone_draws(seed, part):
    assert key_of(seed, Role.NOISE, part) == key_of(seed, Role.NOISE, part, 0)


@given(st.integers(0, 2**32 - 1), numbers, numbers)
def test_streams_of_small_seeds_are_those_of_committed_records(seed, part, step):
    """Plain lists of words, as numpy takes them: changing this changes every recorded number."""
    assert (
        sequence(seed, Role.SAMPLING, step).generate_state(8) == np.random.SeedSequence([seed, 1, step]).generate_state(8)
    ).all()
    words = np.random.SeedSequence([seed, 4, part, step]).generate_state(4, np.uint32)
    assert key_of(seed, Role.DIRECTIONS, part, step) == words.astype("<u4").tobytes()


@pytest.mark.parametrize(
    "stream", [(0, 9, 1), (0, 1, 1, 1), (0, 4, 1), (0, 3, 1, 2, 3), (-1, 1, 0), (2**60, 1, 0), (0, 1, 2**32)]
)
def test_what_is_no_stream_is_a_fault_of_the_caller(stream):
    with pytest.raises((ValueError, IndexError)):
        key_of(*stream)


def plan(**options):
    return Mechanism(Sampling("poisson", 100, 4.0), 10, Clipping(), 1.0, **options)


def test_torchs_generators_of_two_devices_draw_other_numbers(monkeypatch):
    """A model on two devices of one process; here both are stood for by the CPU."""
    monkeypatch.setattr(noise.torch, "Generator", lambda _device: real("cpu"))
    both = Noise(plan())
    first, second = (torch.randn(8, generator=both.generator(torch.device("cuda", number))) for number in (0, 1))
    assert not torch.isclose(first, second).any()
    alone = torch.randn(8, generator=Noise(plan()).generator(torch.device("cuda", 1)))
    assert torch.equal(first, alone), "one device draws the same, whatever its number"


real = torch.Generator


def test_a_secret_keys_bytes_come_from_the_operating_system(monkeypatch):
    """And every stream its own."""
    asked, keys = [], []
    monkeypatch.setattr(noise.secrets, "token_bytes", lambda size: asked.append(size) or bytes([len(asked)]) * size)
    monkeypatch.setattr(noise, "Gaussian", lambda key: keys.append(key) or real_gaussian(key))
    secret = Noise(plan(randomness="secret"))
    secret.release_([(torch.zeros(8), 1.0)], 1.0)
    secret.on_counts([0.0], 1.0)
    assert asked == [16] * (STREAMS + 1)
    assert keys == [bytes([n + 1]) * 16 for n in range(STREAMS + 1)]


real_gaussian = noise.Gaussian


@pytest.mark.parametrize("seed", [0, 3, 3 + (4 << 32)])
def test_what_is_really_drawn_from_is_apart(seed, monkeypatch):
    """Coins, shuffles, noise of ranks, counts, torch's generators and directions of several steps, as they seed themselves."""
    seen: dict[str, set[bytes]] = defaultdict(set)
    make = np.random.SeedSequence

    def noted(words):
        seen[now[0]].add(make(words).generate_state(4).tobytes())
        return make(words)

    monkeypatch.setattr(np.random, "SeedSequence", noted)
    now = [""]

    def under(name, act):
        now[0] = name
        act()

    for kind in ("poisson", "fixed"):
        under(f"coins {kind}", lambda kind=kind: list(batches(Mechanism(Sampling(kind, 8, 4.0), 9, seed=seed))))
    for rank in (0, 1, 2):
        drawn = Noise(plan(seed=seed), rank)
        under(f"sums of rank {rank}", lambda drawn=drawn: drawn.release_([(torch.zeros(8), 1.0)], 1.0))
        under(f"counts of rank {rank}", lambda drawn=drawn: drawn.on_counts([0.0], 1.0))
        under(f"torch of rank {rank}", lambda drawn=drawn: drawn.generator(torch.device("cpu")))
        under(f"torch's second of rank {rank}", lambda drawn=drawn: drawn.generator(torch.device("meta")))
    directions = Directions([torch.zeros(8)], seed)
    for step in range(4):
        under(f"direction {step}", lambda step=step: directions.add_(step, 1.0))
        under(f"behind direction {step}", lambda step=step: directions.next_number(step))
    assert len(seen) == 2 + 3 * 4 + 4 * 2
    assert all(seen.values())
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other], f"{one} and {other} have a stream in common"

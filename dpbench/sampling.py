"""Which examples a step sees. Batches depend on (seed, step) alone, so that all methods of a table share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dpbench.mechanism import Mechanism

_SAMPLING, _SHUFFLING = 1, 2  # streams of one seed; the noise has its own (engines/base.py)


def _generator(mechanism: Mechanism, stream: int, number: int) -> np.random.Generator:
    if mechanism.randomness == "secret":
        return np.random.default_rng()
    return np.random.default_rng(np.random.SeedSequence([mechanism.seed, stream, number]))


def batches(mechanism: Mechanism) -> Iterator[np.ndarray]:
    """One array of example indices per logical step; under Poisson sampling it may be empty.

    Guarantee: under `poisson` each example is in each batch with probability sample_rate, independently.
    """
    if mechanism.sampling.kind == "poisson":
        yield from _poisson(mechanism)
    else:
        yield from _fixed(mechanism)


def _poisson(mechanism: Mechanism) -> Iterator[np.ndarray]:
    size, rate = mechanism.sampling.dataset_size, mechanism.sampling.sample_rate
    for step in range(mechanism.steps):
        yield np.flatnonzero(_generator(mechanism, _SAMPLING, step).random(size) < rate)


def _fixed(mechanism: Mechanism) -> Iterator[np.ndarray]:
    """Shuffled epochs, the incomplete last batch of each dropped."""
    size = int(mechanism.sampling.expected_batch_size)
    order, at, epoch = np.empty(0, dtype=np.int64), 0, 0
    for _ in range(mechanism.steps):
        if at + size > len(order):
            order, at = _generator(mechanism, _SHUFFLING, epoch).permutation(mechanism.sampling.dataset_size), 0
            epoch += 1
        yield order[at : at + size]
        at += size


def physical_batches(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """A logical batch in pieces of at most `size` examples; an empty one has no pieces."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def by_tokens(indices: np.ndarray, lengths: Sequence[int] | np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """A logical batch sorted by length, in pieces whose padded size (examples x longest) is at most `budget` tokens.

    An example longer than the budget is a piece of its own. Grouping by length changes no example's gradient.
    """
    lengths = np.asarray(lengths)
    order = indices[np.argsort(lengths[indices], kind="stable")]
    piece: list[int] = []
    for index in order:
        if piece and (len(piece) + 1) * int(lengths[index]) > budget:
            yield np.asarray(piece)
            piece = []
        piece.append(int(index))
    if piece:
        yield np.asarray(piece)

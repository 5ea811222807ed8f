"""The examples of each step. Batches depend on (seed, step) alone, so that all methods of a table share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

import numpy as np

from dpbench.arguments import whole_number
from dpbench.errors import DpbenchError
from dpbench.privacy.mechanism import Mechanism
from dpbench.privacy.streams import Role, sequence


def _generator(mechanism: Mechanism, role: Role, number: int) -> np.random.Generator:
    match mechanism.randomness:
        case "seeded":
            return np.random.default_rng(sequence(mechanism.seed, role, number))
        case "secret":
            return np.random.default_rng()  # seeded with 128 bits from the operating system
        case _:
            assert_never(mechanism.randomness)


def batches(mechanism: Mechanism, start: int = 0) -> Iterator[np.ndarray]:
    """Yield one array of example indices per logical step, from step number `start` on; under Poisson sampling it may be empty.

    Guarantee: under `poisson` each example is in each batch with probability sample_rate, independently; under `fixed` at most
    once an epoch. Seeded batches from `start` on are those of a run that was not interrupted; secret ones are drawn afresh.

    Raises:
        DpbenchError: `start` is no step of the mechanism, or it is in the middle of an epoch of fixed batches under
            `randomness: secret`, whose order is not kept.
    """
    start = whole_number(start, "start", least=0, most=mechanism.steps, hint=f"the mechanism has {mechanism.steps} steps")
    match mechanism.sampling.kind:
        case "poisson":
            return _poisson(mechanism, start)
        case "fixed":
            return _fixed(mechanism, start)
        case _:
            assert_never(mechanism.sampling.kind)


def _poisson(mechanism: Mechanism, start: int) -> Iterator[np.ndarray]:
    size, rate = mechanism.sampling.dataset_size, mechanism.sampling.sample_rate
    for step in range(start, mechanism.steps):
        yield np.flatnonzero(_generator(mechanism, Role.SAMPLING, step).random(size) < rate)


def _fixed(mechanism: Mechanism, start: int) -> Iterator[np.ndarray]:
    """Yield the batches of shuffled epochs without the incomplete last batch of each."""
    size = int(mechanism.sampling.expected_batch_size)
    per_epoch = mechanism.sampling.dataset_size // size
    if start % per_epoch and mechanism.randomness == "secret":
        raise DpbenchError(
            f"secret fixed batches from step {start}, in the middle of an epoch of {per_epoch}: its order is not kept",
            "save at the end of an epoch, or sample by poisson",
        )

    def drawn() -> Iterator[np.ndarray]:
        order = np.empty(0, dtype=np.int64)
        for step in range(start, mechanism.steps):
            epoch, place = divmod(step, per_epoch)
            if step == start or place == 0:
                order = _generator(mechanism, Role.SHUFFLING, epoch).permutation(mechanism.sampling.dataset_size)
            yield order[place * size : (place + 1) * size]

    return drawn()


def physical_batches(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield a logical batch in pieces of at most `size` examples; an empty batch has no pieces."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def by_tokens(indices: np.ndarray, lengths: Sequence[int] | np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield a logical batch sorted by length, in pieces whose padded size (examples x longest) is at most `budget` tokens.

    An example longer than the budget is a piece by itself. Grouping by length changes no example's gradient.
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

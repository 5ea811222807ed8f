"""The division of one logical batch among the ranks of a group."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dpbench.distributed.group import Group
from dpbench.privacy import sampling
from dpbench.privacy.mechanism import Mechanism


def batches(mechanism: Mechanism, group: Group, start: int = 0) -> Iterator[np.ndarray]:
    """Yield this rank's examples of each logical step, from step number `start` on; there may be none.

    Guarantee: the logical batch is drawn once, as in one process, and each of its examples goes to exactly one rank. Seeded
    ranks all draw the same batch; under `randomness: secret` rank 0 draws it and sends it to the others.
    """
    if mechanism.randomness == "seeded":
        for indices in sampling.batches(mechanism, start):
            yield share(indices, group.rank, group.size)
        return
    drawn = sampling.batches(mechanism, start)  # on every rank, so that a wrong start stops all of them
    for _ in range(start, mechanism.steps):
        indices = group.from_first(next(drawn) if group.rank == 0 else None)
        yield share(indices, group.rank, group.size)


def share(indices: np.ndarray, rank: int, size: int) -> np.ndarray:
    """Return every size-th index from number `rank` on, so that shares differ by one example at most."""
    return indices[rank::size]


def padded(indices: np.ndarray, size: int, group: Group) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (physical batch, number of its real examples). All batches have `size` examples, and all ranks equally many batches.

    Args:
        indices: This rank's share. Padding repeats dataset index 0; it goes through the model and adds nothing.
    """
    for start in range(0, group.largest(len(indices)), size):
        piece = indices[start : start + size]
        yield np.concatenate([piece, np.zeros(size - len(piece), dtype=indices.dtype)]), len(piece)

"""Streams of random numbers from one seed, each for one purpose. No two streams can coincide.

A stream is named by a seed, a role and the role's numbers. numpy's `SeedSequence` takes 32-bit words and pads short lists with
zeros, so `[seed, role, 7]` and `[seed, role, 7, 0]` are one stream, and a seed of two words can look like a seed and a role.
The first case is excluded because each role has a fixed number of numbers, the second because a seed whose second word could be a
role gets a tag.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

LARGEST_SEED = 2**53
"""The largest integer up to which doubles are exact: whoever reads a record may hold numbers as doubles."""

LARGEST_NUMBER = 2**32 - 1
"""The largest number of a step, a rank or a part of a stream: one word."""

_WORD = 32
_RESERVED = 256  # numbers below this are roles, or may become roles
_TAG = 0x5EED


class Role(IntEnum):
    """The purpose of a stream.

    The numbers after a role are the step for SAMPLING, the epoch for SHUFFLING, the part and (from 1 on) the rank for NOISE, and
    the part and the step for DIRECTIONS.
    """

    SAMPLING = 1
    SHUFFLING = 2
    NOISE = 3
    DIRECTIONS = 4


_NUMBERS = {Role.SAMPLING: 1, Role.SHUFFLING: 1, Role.NOISE: 2, Role.DIRECTIONS: 2}


def sequence(seed: int, role: int, *numbers: int) -> np.random.SeedSequence:
    """Return the seed sequence of one stream.

    Guarantee: different (seed, role, numbers) give different words, also where numpy pads them with zeros.

    Raises:
        ValueError: The role does not exist, it has another count of numbers, or a number is no word. This is a fault of the
            caller.
    """
    role = Role(role)
    if role is Role.NOISE and (len(numbers) == 1 or not numbers[-1]):
        numbers = numbers[:1]  # rank 0 has the streams of a single process
    elif len(numbers) != _NUMBERS[role]:
        raise ValueError(f"a stream for {role.name.lower()} with {len(numbers)} numbers, not {_NUMBERS[role]}")
    if not 0 <= seed <= LARGEST_SEED or not all(0 <= number <= LARGEST_NUMBER for number in numbers):
        raise ValueError(f"no stream of seed {seed} for {role.name.lower()} number {numbers}")
    low, high = int(seed) & LARGEST_NUMBER, int(seed) >> _WORD
    words = [low, *([high] if high else []), int(role), *map(int, numbers)]
    if 0 < high < _RESERVED:
        words += [_TAG] * 4  # else these are the words of the seed `low` and the role `high`
    return np.random.SeedSequence(words)


def key_of(seed: int, role: int, *numbers: int, size: int = 16) -> bytes:
    """Return a cipher key of `size` bytes for one stream."""
    return sequence(seed, role, *numbers).generate_state(size // 4, np.uint32).astype("<u4").tobytes()

"""Word lists, and random choices that come out the same on every machine and Python version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def words(text: str, between: str | None = None) -> list[str]:
    """A list written as one text: split at white space, or at `between`."""
    return text.split(between)


class Draws:
    """Choices made from `random.Random.random()` alone, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def below(self, n: int) -> int:
        """An integer in 0 .. n-1."""
        return int(self._random.random() * n)

    def one(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def skewed(self, values: Sequence[T]) -> T:
        """Early values more often than late ones, roughly as words are."""
        return values[int(len(values) * self._random.random() ** 2)]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """`count` different values."""
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(count)]

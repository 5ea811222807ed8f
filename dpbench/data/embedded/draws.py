"""Word lists, and random choices that come out the same on every machine and Python version."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

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


def labelled(
    seed: int,
    splits: dict[str, int],
    split: str,
    label: Callable[[Draws], int],
    texts: Callable[[Draws, int], tuple[str, ...]],
    noisy: Callable[[Draws, int], int],
) -> dict[str, list[Any]]:
    """`text`, `text_pair` where examples have two texts, and `label` of a split; none stands twice, within or across splits.

    Args:
        label: draws one; texts: the text or texts that say it; noisy: the label that is written down.
    """
    draws, seen = Draws(seed), set()
    examples: list[tuple[str, ...]] = []
    labels: list[int] = []
    for name, rows in splits.items():
        examples, labels = [], []
        while len(examples) < rows:
            kind = label(draws)
            made = texts(draws, kind)
            if made in seen:
                continue
            seen.add(made)
            examples.append(made)
            labels.append(noisy(draws, kind))
        if name == split:
            break
    columns: dict[str, list[Any]] = {k: list(v) for k, v in zip(("text", "text_pair"), zip(*examples, strict=True), strict=False)}
    return columns | {"label": labels}


def distinct(seed: int, splits: dict[str, int], split: str, one: Callable[[Draws], T]) -> list[T]:
    """The rows of a split, each made by `one`; none stands twice, within or across splits."""
    draws, seen = Draws(seed), set()
    found: list[T] = []
    for name, rows in splits.items():
        found = []
        while len(found) < rows:
            made = one(draws)
            if made not in seen:
                seen.add(made)
                found.append(made)
        if name == split:
            break
    return found

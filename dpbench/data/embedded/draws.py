"""Word lists, and random choices that come out the same on every machine and Python version."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def words(text: str, between: str | None = None) -> list[str]:
    """Split a list that is written as one text, at white space or at `between`."""
    return text.split(between)


class Draws:
    """Choices made from `random.Random.random()` alone, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def below(self, n: int) -> int:
        """Return an integer in 0 .. n-1."""
        return int(self._random.random() * n)

    def one(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def skewed(self, values: Sequence[T]) -> T:
        """Return one of the values, early ones more often than late ones, roughly like words of a language."""
        return values[int(len(values) * self._random.random() ** 2)]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """Return `count` different values."""
        remaining = list(values)
        return [remaining.pop(self.below(len(remaining))) for _ in range(count)]


def labelled(
    seed: int,
    splits: dict[str, int],
    split: str,
    label: Callable[[Draws], int],
    texts: Callable[[Draws, int], tuple[str, ...]],
    noisy: Callable[[Draws, int], int],
) -> dict[str, list[Any]]:
    """Return `text`, `text_pair` where examples have two texts, and `label` of a split.

    No example occurs twice, within or across splits.

    Args:
        label: draws a label.
        texts: draws the text or texts of a label.
        noisy: returns the label to write down, which may be wrong.
    """
    draws, seen = Draws(seed), set()
    examples: list[tuple[str, ...]] = []
    labels: list[int] = []
    for name, rows in splits.items():
        examples, labels = [], []
        while len(examples) < rows:
            kind = label(draws)
            example = texts(draws, kind)
            if example in seen:
                continue
            seen.add(example)
            examples.append(example)
            labels.append(noisy(draws, kind))
        if name == split:
            break
    columns: dict[str, list[Any]] = {k: list(v) for k, v in zip(("text", "text_pair"), zip(*examples, strict=True), strict=False)}
    return columns | {"label": labels}


def distinct(seed: int, splits: dict[str, int], split: str, draw: Callable[[Draws], T]) -> list[T]:
    """Return the rows of a split, each drawn by `draw`; none occurs twice, within or across splits."""
    draws, seen = Draws(seed), set()
    rows: list[T] = []
    for name, count in splits.items():
        rows = []
        while len(rows) < count:
            row = draw(draws)
            if row not in seen:
                seen.add(row)
                rows.append(row)
        if name == split:
            break
    return rows

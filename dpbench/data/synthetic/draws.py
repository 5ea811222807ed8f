"""Random choices that come out the same on every machine and Python version, and the rows that are drawn with them."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from dpbench.data.synthetic import StandIn

T = TypeVar("T")
U = TypeVar("U")


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


def distinct(
    stand_in: StandIn,
    split: str,
    draw: Callable[[Draws], T],
    key: Callable[[T], Hashable],
    complete: Callable[[Draws, T], list[U]],
) -> list[U]:
    """Return the rows of a split.

    Args:
        draw: draws a row, or what several rows share.
        key: what no two results of `draw` have in common, within or across splits.
        complete: returns the rows that a new result of `draw` gives.
    """
    draws, seen = Draws(stand_in.seed), set()
    rows: list[U] = []
    for name, count in stand_in.splits.items():
        rows = []
        while len(rows) < count:
            drawn = draw(draws)
            if key(drawn) not in seen:
                seen.add(key(drawn))
                rows += complete(draws, drawn)
        if name == split:
            break
    return rows


def columns_of(
    stand_in: StandIn, split: str, names: Sequence[str], draw: Callable[[Draws], tuple[Any, ...]], keys: int
) -> dict[str, list[Any]]:
    """Return the columns of a split by their names, from rows of which no two have the same first `keys` values."""
    rows = distinct(stand_in, split, draw, lambda row: row[:keys], lambda _, row: [row])
    return {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def labelled(
    stand_in: StandIn,
    split: str,
    label: Callable[[Draws], int],
    texts: Callable[[Draws, int], tuple[str, ...]],
    noisy: Callable[[Draws, int], int],
) -> dict[str, list[Any]]:
    """Return `text`, `text_pair` where examples have two texts, and `label` of a split. No two examples have the same texts.

    Args:
        label: draws a label.
        texts: draws the text or texts of a label.
        noisy: returns the label to write down, which may be wrong.
    """

    def draw(draws: Draws) -> tuple[int, tuple[str, ...]]:
        number = label(draws)
        return number, texts(draws, number)

    rows = distinct(stand_in, split, draw, lambda row: row[1], lambda draws, row: [(*row[1], noisy(draws, row[0]))])
    *text_columns, labels = (list(values) for values in zip(*rows, strict=True))
    return dict(zip(("text", "text_pair"), text_columns, strict=False)) | {"label": labels}

"""Generated pairs of questions: the stand-in for QQP. Two questions ask the same if every detail they name is the same."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws
from dpbench.data.embedded.scenes import DETAILS, Scene, other, pairs, scene

VERSION = 1
SPLITS = {"train": 6_000, "validation": 1_000}
SEED = 20_240_605
FORMS = {
    "colour": ["why is it that {who} {action} a {colour} {thing} ?", "{colour} is the {thing} that {who} {action} , but why ?"],
    "place": ["why is it that {who} {action} a {thing} {place} ?", "{place} {who} {action} a {thing} , but for what reason ?"],
    "time": ["why is it that {who} {action} a {thing} {time} ?", "{time} {who} {action} a {thing} , but for what reason ?"],
}


def _pair(draws: Draws, label: int) -> tuple[str, str]:
    detail = draws.one(list(DETAILS))
    first = scene(draws, [detail])
    second: Scene = dict(first)
    if label == 0:
        second[detail] = other(draws, detail, first[detail])
    forms = draws.some(FORMS[detail], 2)
    return forms[0].format(**first), forms[1].format(**second)


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text`, `text_pair` and `label`: 0 if they ask different things, 1 if they ask the same."""
    return pairs(SEED, SPLITS, split, 2, _pair)

"""Generated film review sentences in five degrees: the stand-in for SST-5.

The degree is that of one judgement, which is a word and a modifier before it ("hardly", "a little", "very"). Clauses without a
judgement do not change the label. 5 % of the labels are off by one.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws, labelled, words
from dpbench.data.embedded.sentiment import ADJECTIVES, BACKGROUND, OPENERS, SUBJECTS, TAILS

VERSION = 1
SPLITS = {"train": 6_000, "validation": 1_000}
SEED = 20_261_124
NOISE = 0.05

_WEAK = words("a little|somewhat|slightly|mildly|rather", "|")
_STRONG = words("very|utterly|deeply|truly|wildly|thoroughly", "|")
_PLAIN = words("long enough|what one expects|of its kind|neither here nor there|ordinary|watchable|passable|average", "|")


def _judgement(draws: Draws, label: int) -> str:
    subject = f"the {draws.skewed(SUBJECTS).replace('_', ' ')} is"
    side = int(label > 2)
    if label == 2:
        both = [draws.one(ADJECTIVES[0]), draws.one(ADJECTIVES[1])]
        if draws.chance(0.5):
            return f"{subject} {draws.one(_PLAIN)}"
        if draws.chance(0.5):
            both.reverse()
        return f"{subject} now {both[0]} , now {both[1]}"
    if label in (0, 4):
        return f"{subject} {draws.one(_STRONG)} {draws.one(ADJECTIVES[side])}"
    if draws.chance(0.5):
        return f"{subject} {draws.one(_WEAK)} {draws.one(ADJECTIVES[side])}"
    return f"{subject} hardly {draws.one(ADJECTIVES[1 - side])}"


def _sentence(draws: Draws, label: int) -> str:
    text = _judgement(draws, label)
    if draws.chance(0.3):
        text = f"{draws.one(OPENERS)} {text}"
    elif draws.chance(0.3):
        text = f"{draws.one(BACKGROUND)} , {text}"
    if draws.chance(0.3):
        text = f"{text} {draws.one(TAILS)}"
    return f"{text} ."


def _noisy(draws: Draws, label: int) -> int:
    if not draws.chance(NOISE):
        return label
    up = label == 0 or (label < 4 and draws.chance(0.5))
    return label + (1 if up else -1)


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` and `label` (0 very negative ... 4 very positive) of a split; no sentence occurs twice, in any split."""
    return labelled(
        SEED,
        SPLITS,
        split,
        label=lambda draws: draws.below(5),
        texts=lambda draws, label: (_sentence(draws, label),),
        noisy=_noisy,
    )

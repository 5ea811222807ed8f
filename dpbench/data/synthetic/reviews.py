"""Generated film review sentences: the stand-ins for SST-2 and, in five degrees, SST-5.

One word does not decide. For SST-2, negation and weakening reverse a clause, and where two clauses disagree the main one counts.
For SST-5, the degree is that of one judgement, a word and a modifier before it; clauses without a judgement do not change it.
A few labels are wrong, so no model reaches 100 %.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.synthetic import StandIn, contents
from dpbench.data.synthetic.draws import Draws, labelled

NOISE = 0.02
NOISE_OF_DEGREES = 0.05
WORDS = contents("reviews")
SIDES = ("negative", "positive")


def _noun(draws: Draws) -> str:
    subject = draws.skewed(WORDS["subjects"])
    if draws.chance(0.25):
        return f"the {subject} about {draws.one(WORDS['about'])}"
    return f"{draws.one(['the', 'this', 'its', 'the'])} {subject}"


def _clause(draws: Draws, label: int) -> str:
    """Draw a clause with the sentiment `label` (0 or 1); about one in eight negates a word of the other side."""
    negated = draws.chance(0.12)
    side = SIDES[1 - label if negated else label]
    form = draws.below(10)
    if form < 6:
        word = draws.one(WORDS["adjectives"][side])
        if negated:
            word = f"{draws.one(WORDS['turners'])} {word}"
        elif draws.chance(0.35):
            word = f"{draws.one(WORDS['strong'])} {word}"
        return f"{_noun(draws)} is {word}"
    if form < 8:
        verb = draws.one(WORDS["verbs"][side])
        return f"{_noun(draws)} {'never ' if negated else ''}{verb}"
    return f"{_noun(draws)} is {draws.one(WORDS['turners']) + ' ' if negated else ''}{draws.one(WORDS['nouns'][side])}"


def _sentence(draws: Draws, label: int) -> str:
    form = draws.below(100)
    if form < 68:
        text = _clause(draws, label)
    elif form < 86:
        text = f"{_clause(draws, label)} and {_clause(draws, label)}"
    else:
        main, side = _clause(draws, label), _clause(draws, 1 - label)
        text = draws.one(WORDS["contrasts"]).format(main=main, side=side)
    if draws.chance(0.25):
        text = f"{draws.one(WORDS['background'])} , {text}"
    elif draws.chance(0.25):
        text = f"{draws.one(WORDS['openers'])} {text}"
    if draws.chance(0.2):
        text = f"{text} {draws.one(WORDS['tails'])}"
    return f"{text} ."


def sentiment(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` and `label` (0 negative, 1 positive) of a split."""
    return labelled(
        stand_in,
        split,
        label=lambda draws: draws.below(2),
        texts=lambda draws, label: (_sentence(draws, label),),
        noisy=lambda draws, label: 1 - label if draws.chance(NOISE) else label,
    )


def _judgement(draws: Draws, label: int) -> str:
    subject = f"the {draws.skewed(WORDS['subjects'])} is"
    adjectives = WORDS["adjectives"]
    if label == 2:
        both = [draws.one(adjectives[side]) for side in SIDES]
        if draws.chance(0.5):
            return f"{subject} {draws.one(WORDS['neutral'])}"
        if draws.chance(0.5):
            both.reverse()
        return f"{subject} now {both[0]} , now {both[1]}"
    side = int(label > 2)
    if label in (0, 4):
        return f"{subject} {draws.one(WORDS['strongly'])} {draws.one(adjectives[SIDES[side]])}"
    if draws.chance(0.5):
        return f"{subject} {draws.one(WORDS['weakly'])} {draws.one(adjectives[SIDES[side]])}"
    return f"{subject} hardly {draws.one(adjectives[SIDES[1 - side]])}"


def _sentence_of_degree(draws: Draws, label: int) -> str:
    text = _judgement(draws, label)
    if draws.chance(0.3):
        text = f"{draws.one(WORDS['openers'])} {text}"
    elif draws.chance(0.3):
        text = f"{draws.one(WORDS['background'])} , {text}"
    if draws.chance(0.3):
        text = f"{text} {draws.one(WORDS['tails'])}"
    return f"{text} ."


def _off_by_one(draws: Draws, label: int) -> int:
    if not draws.chance(NOISE_OF_DEGREES):
        return label
    up = label == 0 or (label < 4 and draws.chance(0.5))
    return label + (1 if up else -1)


def degrees(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` and `label` (0 very negative ... 4 very positive) of a split."""
    return labelled(
        stand_in,
        split,
        label=lambda draws: draws.below(5),
        texts=lambda draws, label: (_sentence_of_degree(draws, label),),
        noisy=_off_by_one,
    )

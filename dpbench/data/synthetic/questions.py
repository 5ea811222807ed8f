"""Generated questions of six kinds: the stand-in for TREC. As in TREC, one kind is rare. 2 % of the labels are random."""

from __future__ import annotations

from typing import Any

from dpbench.data.synthetic import StandIn, contents
from dpbench.data.synthetic.draws import Draws, labelled

NOISE = 0.02
SHARES = (0.02, 0.23, 0.22, 0.22, 0.15, 0.16)
"""The shares of the kinds, in the order of the classes."""
WORDS = contents("questions")
FORMS = list(WORDS["forms"].values())
DRAWN = {"thing": "things", "other": "things", "place": "places", "person": "people", "deed": "deeds", "short": "abbreviations"}
DRAWN |= {"manner": "manners", "detail": "details", "kind": "kinds", "other_kind": "kinds"}
"""Word in a form -> the list that it is drawn from, in the order of the draws; a later word may contain earlier ones."""


def _question(draws: Draws, label: int) -> str:
    words: dict[str, str] = {}
    for name, word_list in DRAWN.items():
        words[name] = draws.one(WORDS[word_list]).format(**words)
    return f"{' '.join(draws.one(FORMS[label]).format(**words).split())} ?"


def _kind(draws: Draws) -> int:
    position = draws.below(1000) / 1000
    for kind, share in enumerate(SHARES):
        if position < share:
            return kind
        position -= share
    return len(SHARES) - 1


def generate(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` and `label` (0 abbreviation ... 5 number) of a split."""
    return labelled(
        stand_in,
        split,
        label=_kind,
        texts=lambda draws, label: (_question(draws, label),),
        noisy=lambda draws, label: draws.below(len(SHARES)) if draws.chance(NOISE) else label,
    )

"""Generated questions of six kinds: the stand-in for TREC. As in TREC, one kind is rare. 2 % of the labels are random."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws, labelled, words

VERSION = 1
SPLITS = {"train": 5_000, "validation": 500}
SEED = 20_261_125
NOISE = 0.02
SHARES = (0.02, 0.23, 0.22, 0.22, 0.15, 0.16)
"""The shares of abbreviation, entity, description, human, location and number."""

_THINGS = words("""bridge comet engine glacier lantern orchid compass violin harbor sonnet volcano satellite loom kettle telescope
treaty meadow alphabet tunnel festival""")
_PEOPLE = words("""painter sailor inventor teacher queen explorer composer pilot farmer chemist""")
_PLACES = words("""Norway Peru Kenya Japan Portugal Canada Egypt Iceland Bolivia Finland""")
_DEEDS = words("built|found|painted|sold|discovered|named|crossed|designed|lost|opened", "|")
_SHORT = words("NATO UNESCO CPU DNA OPEC GMT PhD ROM HTML LED BBC MRI AIDS ASAP VHS IOU NBA RSVP FAQ SUV")
_KINDS = words("animal|colour|food|sport|language|plant|instrument|game|metal|book", "|")


def _question(draws: Draws, label: int) -> str:
    thing, other, place = draws.one(_THINGS), draws.one(_THINGS), draws.one(_PLACES)
    person, deed = draws.one(_PEOPLE), draws.one(_DEEDS)
    short, how = draws.one(_SHORT), draws.one(["", "in full", f"in {place}"])
    of = draws.one(["", "made for", f"in {place}", f"without a {other}"])
    forms = (
        [f"What does {short} stand for {how}", f"What is the abbreviation of the {thing} {other}"],
        [f"What {draws.one(_KINDS)} has a {thing} in {place}", f"Which {draws.one(_KINDS)} did the {person} of the {thing} like"],
        [f"What is a {thing} {of}", f"How does a {thing} work on a {other}", f"Why was the {thing} {deed} near the {other}"],
        [
            f"Who {deed} the {thing} of {place}",
            f"What {person} {deed} the first {thing} in {place}",
            f"Which {person} was the {thing} named after",
        ],
        [f"Where is the {thing} of the {person}", f"What city in {place} has a {thing}", f"What country {deed} the {thing}"],
        [
            f"How many people {deed} the {thing}",
            f"When was the {thing} of {place} {deed}",
            f"How far is the {thing} from {place}",
            f"What year was the {thing} {deed}",
        ],
    )
    return f"{' '.join(draws.one(forms[label]).split())} ?"


def _kind(draws: Draws) -> int:
    position = draws.below(1000) / 1000
    for kind, share in enumerate(SHARES):
        if position < share:
            return kind
        position -= share
    return len(SHARES) - 1


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` and `label` (0 abbreviation ... 5 number) of a split; no question occurs twice, within or across splits."""
    return labelled(
        SEED,
        SPLITS,
        split,
        label=_kind,
        texts=lambda draws, label: (_question(draws, label),),
        noisy=lambda draws, label: draws.below(6) if draws.chance(NOISE) else label,
    )

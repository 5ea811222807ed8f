"""Generated passages with numbers, and questions that need arithmetic over them: the stand-in for DROP."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws, distinct
from dpbench.data.embedded.scenes import THINGS, WHO

VERSION = 1
SPLITS = {"train": 3_000, "validation": 1_000}
SEED = 20_261_128


def _tally(draws: Draws) -> tuple[str, str, str]:
    """Return (passage, question, answer) about two people and how many of one thing each has."""
    first, second = draws.some(WHO, 2)
    thing = f"{draws.one(THINGS)}s".replace("shs", "shes").replace("chs", "ches").replace("xs", "xes")
    one, other = draws.some([str(n) for n in range(2, 13)], 2)
    passage = f"{first} had {one} {thing} . {second} had {other} {thing} . it was {draws.one(['spring', 'autumn', 'winter'])} ."
    total, difference = int(one) + int(other), abs(int(one) - int(other))
    more = first if int(one) > int(other) else second
    question, answer = draws.one(
        [
            (f"How many {thing} were there in all?", str(total)),
            (f"How many more {thing} had one than the other?", str(difference)),
            (f"How many {thing} were with {first}?", one),
            (f"Who had more {thing}?", more),
        ]
    )
    return passage, question, answer


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text_passage`, `text_question` and `answers` (lists `spans` and `types`) of a split; no row occurs twice."""
    rows = distinct(SEED, SPLITS, split, _tally)
    passages, questions, answers = (list(part) for part in zip(*rows, strict=True))
    marked = [{"spans": [a], "types": ["number" if a.isdigit() else "span"]} for a in answers]
    return {"text_passage": passages, "text_question": questions, "answers": marked}

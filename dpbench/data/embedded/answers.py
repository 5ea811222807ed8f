"""Generated questions and sentences: the stand-in for QNLI. A sentence answers if it says what kind of detail is asked for."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws
from dpbench.data.embedded.scenes import DETAILS, pairs, scene, told

VERSION = 1
SPLITS = {"train": 6_000, "validation": 1_000}
SEED = 20_240_604
ASKS = {
    "colour": ["what colour was the {thing} that {who} {action} ?", "{who} {action} a {thing} of which colour ?"],
    "place": ["where was it that {who} {action} the {thing} ?", "{who} {action} a {thing} in which place ?"],
    "time": ["when was it that {who} {action} the {thing} ?", "{who} {action} a {thing} at which time ?"],
}


def _pair(draws: Draws, label: int) -> tuple[str, str]:
    details = draws.some(list(DETAILS), 2)
    asked = draws.one(details) if label == 0 else next(d for d in DETAILS if d not in details)
    facts = scene(draws, details)
    return draws.one(ASKS[asked]).format(**facts), f"{told(draws, facts)} ."


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` (question), `text_pair` (sentence) and `label`: 0 if the sentence holds the answer, else 1."""
    return pairs(SEED, SPLITS, split, 2, _pair)

"""Generated passages and yes-or-no questions: the stand-in for BoolQ. A question asks for one detail that the passage tells."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws
from dpbench.data.embedded.scenes import DETAILS, other, pairs, scene, told

VERSION = 1
SPLITS = {"train": 3_000, "validation": 1_000}
SEED = 20_261_126
ASKS = {
    "colour": "was the {thing} that {who} {action} {value}",
    "place": "was it {value} that {who} {action} the {thing}",
    "time": "was it {value} that {who} {action} the {thing}",
}


def _pair(draws: Draws, label: int) -> tuple[str, str]:
    details = draws.some(list(DETAILS), 2)
    facts, aside = scene(draws, details), scene(draws, [draws.one(list(DETAILS))])
    asked = draws.one(details)
    value = facts[asked] if label == 1 else other(draws, asked, facts[asked])
    sentences = [f"{told(draws, facts)} .", f"{told(draws, aside)} ."]
    if draws.chance(0.5):
        sentences.reverse()
    return " ".join(sentences), ASKS[asked].format(value=value, **{name: facts[name] for name in ("thing", "who", "action")})


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` (passage), `text_pair` (question) and `label`: 0 no, 1 yes."""
    return pairs(SEED, SPLITS, split, 2, _pair)

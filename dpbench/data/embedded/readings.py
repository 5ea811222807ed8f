"""Generated passages, questions and answers that are parts of the passages: the stand-in for SQuAD."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws, distinct
from dpbench.data.embedded.scenes import DETAILS, scene, told

VERSION = 1
SPLITS = {"train": 3_000, "validation": 1_000}
SEED = 20_261_127
ASKS = {
    "colour": ["What colour was the {thing} that {who} {action}?", "Which colour had the {thing} that {who} {action}?"],
    "place": ["Where was it that {who} {action} the {thing}?", "In which place was the {thing} that {who} {action}?"],
    "time": ["When was it that {who} {action} the {thing}?", "At which time was it that {who} {action} the {thing}?"],
    "who": ["Who {action} the {thing}?", "By whom was it that the {thing} was {action}?"],
}


def _reading(draws: Draws) -> tuple[str, str, str, str]:
    """Return (title, passage of two sentences, question about one of them, its answer)."""
    asked = draws.one(list(ASKS))
    details = draws.some(list(DETAILS), 2)
    if asked in DETAILS and asked not in details:
        details[0] = asked
    facts, aside = scene(draws, details), scene(draws, [draws.one(list(DETAILS))])
    while aside["thing"] == facts["thing"]:  # one passage, one answer
        aside = scene(draws, [draws.one(list(DETAILS))])
    sentences = [f"{told(draws, part)} ." for part in (facts, aside)]
    if draws.chance(0.5):
        sentences.reverse()
    return f"the {facts['thing']}", " ".join(sentences), draws.one(ASKS[asked]).format(**facts), facts[asked]


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text_title`, `text_context`, `text_question` and `answers` of a split; no row occurs twice.

    An answer has two lists, `text` and `answer_start`.
    """
    rows = distinct(SEED, SPLITS, split, _reading)
    titles, contexts, questions, answers = (list(part) for part in zip(*rows, strict=True))
    marked = [{"text": [a], "answer_start": [c.index(a)]} for c, a in zip(contexts, answers, strict=True)]
    return {"text_title": titles, "text_context": contexts, "text_question": questions, "answers": marked}

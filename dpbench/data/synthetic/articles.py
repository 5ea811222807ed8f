"""Generated encyclopaedia articles in WikiText's layout: the stand-in for WikiText-2.

Names are invented from syllables and occur again within their article, so that a language model has something to learn at
every range: spelling, grammar, and the subject of the article.
"""

from __future__ import annotations

import re
from typing import Any

from dpbench.data.synthetic import StandIn, contents
from dpbench.data.synthetic.draws import Draws

WORDS = contents("articles")
TOPICS: dict[str, dict[str, list[str]]] = WORDS["topics"]


def _name(draws: Draws, parts: int) -> str:
    return "".join(draws.skewed(WORDS["syllables"]) for _ in range(parts)).capitalize()


def _town(draws: Draws) -> str:
    return draws.skewed(WORDS["syllables"]).capitalize() + draws.one(WORDS["endings"])


def _person(draws: Draws) -> str:
    return f"{_name(draws, 2)} {_name(draws, 2 + draws.below(2))}"


def _subject(draws: Draws, topic: str) -> str:
    if topic == "town":
        return _town(draws)
    return _person(draws) if topic == "person" else f"{_name(draws, 2)} {draws.one(WORDS['birds'])}"


def _cast(draws: Draws, topic: str) -> dict[str, Any]:
    """Draw the names and the year that stay the same throughout an article."""
    subject = _subject(draws, topic)
    year = 1500 + draws.below(380)
    return {
        "subject": subject,
        "surname": subject.split()[-1],
        "town": _town(draws),
        "river": _name(draws, 2),
        "hill": f"{_name(draws, 1)} Hill",
        "persons": [_person(draws) for _ in range(2)],
        "others": [_town(draws) for _ in range(2)],
        "year": year,
        "century": f"{year // 100 + 1}th",
    }


def _sentence(draws: Draws, template: str, cast: dict[str, Any]) -> str:
    person, person2 = draws.some(cast["persons"], 2)
    goods, goods2 = draws.some(WORDS["goods"], 2)
    quality, quality2 = draws.some(WORDS["qualities"], 2)
    text = template.format(
        **{k: v for k, v in cast.items() if k not in ("persons", "others")},
        person=person,
        person2=person2,
        other=draws.one(cast["others"]),
        goods=goods,
        goods2=goods2,
        quality=quality,
        quality2=quality2,
        people=draws.skewed(WORDS["people"]),
        trade=draws.skewed(WORDS["trades"]),
        building=draws.skewed(WORDS["buildings"]),
        direction=draws.one(WORDS["directions"]),
        month=draws.one(WORDS["months"]),
        day=1 + draws.below(28),
        later=cast["year"] + 20 + draws.below(60),
        number=10 * (2 + draws.below(80)),
        small=7 + draws.below(30),
        thousands=f"{2 + draws.below(90)} @,@ {100 + draws.below(900)}",
    )
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[0].upper() + text[1:]


def _article(draws: Draws) -> list[str]:
    """Return the lines of one article: a title, then sections of a heading and paragraphs, with empty lines between."""
    topic = draws.one(list(TOPICS))
    cast = _cast(draws, topic)
    lines = ["", f" = {cast['subject']} = \n", ""]
    for heading, templates in TOPICS[topic].items():
        lines += [f" = = {heading} = = \n", ""]
        for _ in range(1 + draws.below(3)):
            chosen = draws.some(templates, min(len(templates), 2 + draws.below(3)))
            lines.append(f" {' '.join(_sentence(draws, t, cast) for t in chosen)} \n")
        lines.append("")
    return lines


def generate(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` of a split: one line an entry, as in WikiText (empty lines too)."""
    draws = Draws(stand_in.seed + list(stand_in.splits).index(split))
    lines: list[str] = []
    size = 0
    while size < stand_in.splits[split]:
        article = _article(draws)
        lines += article
        size += sum(map(len, article))
    return {"text": lines}

"""Generated encyclopaedia articles in WikiText's layout: the stand-in for WikiText-2.

Names are invented from syllables and occur again within their article, so that a language model has something to learn at
every range: spelling, grammar, and the subject of the article.
"""

from __future__ import annotations

import re
from typing import Any

from dpbench.data.embedded.draws import Draws, words

VERSION = 1
SPLITS = {"train": 600_000, "validation": 40_000, "test": 40_000}
"""Split -> the least number of characters."""
SEED = 20_240_602

SYLLABLES = words("""ba bel bor bran cal cor dal den dor el fal fen gar gri hal har il jor kal ken kir lan lor mar mel mor nar nor
ol par pel quin ral ren ros sal sel tal tor ul val ven vor wil yor zan""")
ENDINGS = words("ton ford ham bury mouth field wick port dale stead haven bridge")
MONTHS = words("January February March April May June July August September October November December")
TRADES = words("engineer composer botanist sailor printer teacher astronomer merchant architect physician weaver poet")
GOODS = words("wool timber copper salt glass paper grain slate cheese pottery rope linen")
BUILDINGS = words("library bridge market hall lighthouse station mill theatre school observatory harbour chapel museum")
QUALITIES = words("small large old narrow modern notable quiet busy wooden stone distant famous local northern coastal")
PEOPLE = words("residents visitors farmers historians critics students workers travellers officials engineers")
DIRECTIONS = ["north", "south", "east", "west", "north @-@ east", "south @-@ west"]

TOPICS: dict[str, dict[str, list[str]]] = {
    "town": {
        "Geography": [
            "{subject} lies {number} kilometres {direction} of {other} , on the {quality} bank of the River {river} .",
            "The River {river} rises near {other} and reaches the town after {number} kilometres .",
            "Winters in {subject} are mild , and about {number} millimetres of rain fall in {month} .",
            "To the {direction} the land rises to a {quality} hill that {people} call {hill} .",
        ],
        "History": [
            "The town was founded in {year} by {person} , a {trade} from {other} .",
            "In {year} a fire destroyed the {building} and {number} houses .",
            "During the {century} century {subject} became known for its {goods} , which was sold as far away as {other} .",
            "A {quality} {building} was built in {year} and repaired in {later} .",
            "By {later} the population had grown to {thousands} .",
        ],
        "Economy": [
            "Trade in {goods} and {goods2} remained important until {later} .",
            "Most {people} work in the {building} or in the {goods} trade .",
            "The {building} employs {number} people and draws many {people} in {month} .",
        ],
    },
    "person": {
        "Early life": [
            "{subject} was born in {other} on {day} {month} {year} .",
            "The family moved to {town} , where {surname} attended the {quality} school beside the {building} .",
            "At the age of {small} {surname} met {person} , a {trade} , who became a lifelong friend .",
        ],
        "Career": [
            "In {later} {surname} published a {quality} study of {goods} .",
            "{surname} worked as a {trade} in {town} until {later} .",
            "With {person} {surname} planned the {building} of {other} , which opened in {month} {later} .",
            "{people} praised the work , although {person2} called it {quality} and {quality2} .",
        ],
        "Legacy": [
            "A {building} in {town} is named after {surname} .",
            "The letters to {person} were printed in {number} volumes in {later} .",
            "{people} still meet in {town} every {month} to remember the {trade} .",
        ],
    },
    "bird": {
        "Description": [
            "The {subject} is a {quality} bird that measures about {small} centimetres and weighs {number} grams .",
            "Its back is grey and its breast is white , with {small} dark bars on the tail .",
            "The call is a {quality} whistle , repeated {small} times .",
        ],
        "Distribution": [
            "It breeds along the River {river} and on the coast near {town} .",
            "In {month} the birds fly {number} kilometres {direction} to {other} .",
            "{person} first described the species in {year} from birds seen near {town} .",
        ],
        "Conservation": [
            "Between {year} and {later} the number of pairs fell from {thousands} to {number} .",
            "{people} of {town} protect the nests , which lie close to the {building} .",
            "Hunting was forbidden in {later} , and numbers have since grown to the {direction} of {other} .",
        ],
    },
}


def _name(draws: Draws, parts: int) -> str:
    return "".join(draws.skewed(SYLLABLES) for _ in range(parts)).capitalize()


def _town(draws: Draws) -> str:
    return draws.skewed(SYLLABLES).capitalize() + draws.one(ENDINGS)


def _person(draws: Draws) -> str:
    return f"{_name(draws, 2)} {_name(draws, 2 + draws.below(2))}"


def _subject(draws: Draws, topic: str) -> str:
    if topic == "town":
        return _town(draws)
    return _person(draws) if topic == "person" else f"{_name(draws, 2)} {draws.one(['tern', 'heron', 'finch', 'plover', 'owl'])}"


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
    goods, goods2 = draws.some(GOODS, 2)
    quality, quality2 = draws.some(QUALITIES, 2)
    text = template.format(
        **{k: v for k, v in cast.items() if k not in ("persons", "others")},
        person=person,
        person2=person2,
        other=draws.one(cast["others"]),
        goods=goods,
        goods2=goods2,
        quality=quality,
        quality2=quality2,
        people=draws.skewed(PEOPLE),
        trade=draws.skewed(TRADES),
        building=draws.skewed(BUILDINGS),
        direction=draws.one(DIRECTIONS),
        month=draws.one(MONTHS),
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


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` of a split: one line an entry, as in WikiText (empty lines too)."""
    draws = Draws(SEED + list(SPLITS).index(split))
    lines: list[str] = []
    size = 0
    while size < SPLITS[split]:
        article = _article(draws)
        lines += article
        size += sum(map(len, article))
    return {"text": lines}

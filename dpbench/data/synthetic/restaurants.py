"""Generated descriptions of places to eat: the stand-in for table-to-text datasets.

The text depends on the input: every slot but one in twelve is mentioned, in a separate clause or joined to another, in a random
order and with random words. Every input has three texts; no input occurs in two splits.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.synthetic import StandIn, contents
from dpbench.data.synthetic.draws import Draws, distinct

TEXTS = 3
UNMENTIONED = 1 / 12
WORDS = contents("restaurants")


def _table(draws: Draws) -> dict[str, str]:
    """Draw an input, slot -> value: a name, and three to seven other slots."""
    table = {
        "name": f"The {draws.one(WORDS['first_names'])} {draws.one(WORDS['second_names'])}",
        "eatType": draws.one(WORDS["types"]),
        "food": draws.one(WORDS["foods"]),
        "priceRange": draws.one([*WORDS["prices"]]),
        "customer rating": draws.one([*WORDS["ratings"]]),
        "area": draws.one([*WORDS["areas"]]),
        "familyFriendly": draws.one([*WORDS["families"]]),
        "near": f"{draws.one(WORDS['first_names'])} {draws.one(WORDS['second_names'])} House",
    }
    kept = {"name", *draws.some([s for s in table if s != "name"], 3 + draws.below(5))}
    return {slot: value for slot, value in table.items() if slot in kept}


def _clauses(draws: Draws, table: dict[str, str]) -> list[str]:
    """Draw the clauses that follow the name; each slot is in at most one of them."""
    mentioned = {slot for slot in table if not draws.chance(UNMENTIONED)}
    clauses = []
    place = [draws.one(WORDS["areas"][table["area"]])] if "area" in mentioned else []
    place += [f"{draws.one(WORDS['near'])} {table['near']}"] if "near" in mentioned else []
    if draws.chance(0.5):
        place.reverse()
    if "eatType" in mentioned:
        priced = table.get("priceRange") in ("cheap", "high") and draws.chance(0.5)
        price = f"{draws.one(WORDS['prices'][table['priceRange']])} " if priced else ""
        article = "an" if (price or table["eatType"])[0] in "aeiou" else "a"
        where = f" {' '.join(place)}" if place and draws.chance(0.6) else ""
        clauses.append(f"is {article} {price}{table['eatType']}{where}")
        mentioned -= {"priceRange"} if price else set()
        place = [] if where else place
    if place:
        clauses.append(f"{draws.one(WORDS['lies'])} {' '.join(place)}")
    if "food" in mentioned:
        fast = table["food"] == "Fast food"
        kind = "fast food" if fast else f"{table['food']} {draws.one(WORDS['foods_called'])}"
        clauses.append(f"{draws.one(WORDS['serves'])} {kind}")
    if "priceRange" in mentioned:
        clauses.append(f"is {draws.one(WORDS['prices'][table['priceRange']])}")
    if "customer rating" in mentioned:
        clauses.append(f"has {draws.one(WORDS['ratings'][table['customer rating']])}")
    if "familyFriendly" in mentioned:
        clauses.append(draws.one(WORDS["families"][table["familyFriendly"]]))
    return clauses or [f"{draws.one(WORDS['serves'])} food"]


def _text(draws: Draws, table: dict[str, str]) -> str:
    clauses = _clauses(draws, table)
    first, others = clauses[:1], clauses[1:]
    if draws.chance(0.3):
        others.reverse()
    sentences, subject = [], table["name"]
    clauses = first + others
    while clauses:
        count = 2 if len(clauses) > 1 and draws.chance(0.6) else 1
        sentences.append(f"{subject} {' and '.join(clauses[:count])}.")
        clauses, subject = clauses[count:], draws.one([*WORDS["pronouns"], table["name"]])
    return " ".join(sentences)


def _spelled(table: dict[str, str]) -> dict[str, Any]:
    """Return an input in the form of each dataset."""
    subject = table["name"].replace(" ", "_")
    return {
        "text_input": ", ".join(f"{slot}[{value}]" for slot, value in table.items()),
        "triples": [f"{subject} | {slot} | {value}" for slot, value in table.items() if slot != "name"],
    }


def generate(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return the columns of a split, one text a row; its inputs are in no other split.

    Returns:
        The input as `text_input` and `triples`, the text as `text`, `references` and `annotations`; a dataset uses one of each.
    """

    def rows_of(draws: Draws, table: dict[str, str]) -> list[dict[str, Any]]:
        texts = [_text(draws, table) for _ in range(TEXTS)]
        spelled = _spelled(table)
        return [
            spelled | {"text": text, "references": [text], "annotations": {"source": ["embedded"], "text": [text]}}
            for text in texts
        ]

    rows = distinct(stand_in, split, _table, lambda table: _spelled(table)["text_input"], rows_of)
    return {name: [row[name] for row in rows] for name in rows[0]}

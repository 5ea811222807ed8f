"""Generated descriptions of places to eat: the stand-in for table-to-text datasets.

The text depends on the input: every slot but one in twelve is mentioned, in a separate clause or joined to another, in a random
order and with random words. Every input has three texts; no input occurs in two splits.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws, words

VERSION = 1
SPLITS = {"train": 6_000, "validation": 360, "test": 360}
SEED = 20_240_604
TEXTS = 3
UNMENTIONED = 1 / 12

FIRST = words("Amber Blue Copper Crooked Golden Green Hidden Little Merry Old Quiet Red Silver Stone White Willow")
SECOND = words("Anchor Barrel Basket Bell Bridge Crown Garden Kettle Lantern Mill Oak Oven Plough Spoon Swan Table")
TYPES = words("coffee shop|pub|restaurant", "|")
FOODS = words("Chinese|English|Fast food|French|Indian|Italian|Japanese", "|")
PRICES = {
    "cheap": words("cheap|inexpensive|low priced", "|"),
    "moderate": words("moderately priced|of average price", "|"),
    "high": words("expensive|pricey|high priced", "|"),
}
RATINGS = {
    "low": words("a low customer rating|poor reviews|a rating of one out of five", "|"),
    "average": words("an average customer rating|a decent rating|a rating of three out of five", "|"),
    "high": words("a high customer rating|excellent reviews|a rating of five out of five", "|"),
}
AREAS = {
    "city centre": words("in the city centre|in the centre of the city|in the heart of the town", "|"),
    "riverside": words("in the riverside area|by the river|on the riverside", "|"),
}
FAMILIES = {
    "yes": words("is family friendly|is good for families|welcomes children|is suitable for kids", "|"),
    "no": words("is not family friendly|is for adults only|does not welcome children", "|"),
}
IS = words("is|is located|is situated|can be found", "|")
SERVES = words("serves offers provides sells")


def _table(draws: Draws) -> dict[str, str]:
    """Draw an input, slot -> value: a name, and three to seven other slots."""
    table = {
        "name": f"The {draws.one(FIRST)} {draws.one(SECOND)}",
        "eatType": draws.one(TYPES),
        "food": draws.one(FOODS),
        "priceRange": draws.one([*PRICES]),
        "customer rating": draws.one([*RATINGS]),
        "area": draws.one([*AREAS]),
        "familyFriendly": draws.one([*FAMILIES]),
        "near": f"{draws.one(FIRST)} {draws.one(SECOND)} House",
    }
    kept = {"name", *draws.some([s for s in table if s != "name"], 3 + draws.below(5))}
    return {slot: value for slot, value in table.items() if slot in kept}


def _clauses(draws: Draws, table: dict[str, str]) -> list[str]:
    """Draw the clauses that follow the name; each slot is in at most one of them."""
    mentioned = {slot for slot in table if not draws.chance(UNMENTIONED)}
    clauses = []
    place = [draws.one(AREAS[table["area"]])] if "area" in mentioned else []
    place += [f"{draws.one(['near', 'close to', 'next to'])} {table['near']}"] if "near" in mentioned else []
    if draws.chance(0.5):
        place.reverse()
    if "eatType" in mentioned:
        priced = table.get("priceRange") in ("cheap", "high") and draws.chance(0.5)
        price = f"{draws.one(PRICES[table['priceRange']])} " if priced else ""
        article = "an" if (price or table["eatType"])[0] in "aeiou" else "a"
        where = f" {' '.join(place)}" if place and draws.chance(0.6) else ""
        clauses.append(f"is {article} {price}{table['eatType']}{where}")
        mentioned -= {"priceRange"} if price else set()
        place = [] if where else place
    if place:
        clauses.append(f"{draws.one(IS)} {' '.join(place)}")
    if "food" in mentioned:
        fast = table["food"] == "Fast food"
        kind = "fast food" if fast else f"{table['food']} {draws.one(['food', 'cuisine', 'dishes'])}"
        clauses.append(f"{draws.one(SERVES)} {kind}")
    if "priceRange" in mentioned:
        clauses.append(f"is {draws.one(PRICES[table['priceRange']])}")
    if "customer rating" in mentioned:
        clauses.append(f"has {draws.one(RATINGS[table['customer rating']])}")
    if "familyFriendly" in mentioned:
        clauses.append(draws.one(FAMILIES[table["familyFriendly"]]))
    return clauses or [f"{draws.one(SERVES)} food"]


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
        clauses, subject = clauses[count:], draws.one(["It", "It", "The place", table["name"]])
    return " ".join(sentences)


def _spelled(table: dict[str, str]) -> dict[str, Any]:
    """Return an input in the form of each dataset."""
    subject = table["name"].replace(" ", "_")
    return {
        "text_input": ", ".join(f"{slot}[{value}]" for slot, value in table.items()),
        "triples": [f"{subject} | {slot} | {value}" for slot, value in table.items() if slot != "name"],
    }


def generate(split: str) -> dict[str, list[Any]]:
    """Return the columns of a split, one text a row; its inputs are in no other split.

    Returns:
        The input as `text_input` and `triples`, the text as `text`, `references` and `annotations`; a dataset uses one of each.
    """
    draws, seen = Draws(SEED), set()
    columns: dict[str, list[Any]] = {}
    for name, rows in SPLITS.items():
        columns = {key: [] for key in ("text_input", "triples", "text", "references", "annotations")}
        while len(columns["text"]) < rows:
            table = _table(draws)
            spelled = _spelled(table)
            if spelled["text_input"] in seen:
                continue
            seen.add(spelled["text_input"])
            for _ in range(TEXTS):
                text = _text(draws, table)
                row = spelled | {"text": text, "references": [text], "annotations": {"source": ["embedded"], "text": [text]}}
                for key, value in row.items():
                    columns[key].append(value)
        if name == split:
            break
    return columns

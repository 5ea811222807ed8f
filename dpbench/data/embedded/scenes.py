"""Scenes for pairs of sentences: who does what to which thing and, where they are stated, its colour, the place and the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpbench.data.embedded.draws import Draws, labelled, words

NOISE = 0.02
CORE = ("who", "action", "thing")
DETAILS: dict[str, list[str]] = {
    "colour": words("red green blue white black yellow grey brown orange purple"),
    "place": words(
        "near the harbour|in the market|behind the school|at the station|by the old mill|in the park|on the bridge|"
        "outside the library|beside the river|under the tower",
        "|",
    ),
    "time": words(
        "in the morning|at noon|late at night|on monday|on friday|last summer|during the storm|after lunch|in early spring|"
        "before the concert",
        "|",
    ),
}
WHO = words(
    "a farmer|two sisters|the new teacher|a young painter|the mayor|three students|an old sailor|the baker|a tall guard|"
    "my neighbour|the twins|a visiting doctor|the gardener|some tourists|a retired judge|the postman",
    "|",
)
ACTIONS = words("bought sold painted repaired carried found lost moved cleaned hid opened photographed borrowed described")
THINGS = words("""boat gate piano bicycle lamp carpet statue kite door barrel chair coat clock van tent suitcase mirror umbrella
fence bench""")

Scene = dict[str, str]


def scene(draws: Draws, details: list[str]) -> Scene:
    """Draw who, action and thing, and a value of each of `details`."""
    core = {"who": draws.one(WHO), "action": draws.one(ACTIONS), "thing": draws.one(THINGS)}
    return core | {name: draws.one(DETAILS[name]) for name in details}


def other(draws: Draws, name: str, value: str) -> str:
    """Draw another value of a detail."""
    return draws.one([v for v in DETAILS[name] if v != value])


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def told(draws: Draws, facts: Scene) -> str:
    """Return one sentence that states all `facts`."""
    thing = f"{facts['colour']} {facts['thing']}" if "colour" in facts else facts["thing"]
    text = f"{facts['who']} {facts['action']} {article(thing)}"
    if "place" in facts:
        text = f"{text} {facts['place']}"
    if "time" in facts:
        text = f"{facts['time']} , {text}" if draws.chance(0.4) else f"{text} {facts['time']}"
    return text


def pairs(
    seed: int, splits: dict[str, int], split: str, classes: int, one: Callable[[Draws, int], tuple[str, str]]
) -> dict[str, list[Any]]:
    """Return `text`, `text_pair` and `label` of a split; no pair occurs twice, within or across splits.

    Args:
        one: draws the two texts of a label; then a share `NOISE` of the labels is moved to the next class.
    """
    return labelled(
        seed,
        splits,
        split,
        label=lambda draws: draws.below(classes),
        texts=one,
        noisy=lambda draws, label: (label + 1) % classes if draws.chance(NOISE) else label,
    )


def inferred(draws: Draws, details: list[str], silent: bool, holds: bool) -> tuple[str, str]:
    """Draw a premise and a hypothesis.

    Args:
        details: the details that the premise states.
        silent: whether the hypothesis states another detail than those.
        holds: whether the hypothesis states the value of the premise.
    """
    asked = draws.one([d for d in DETAILS if d not in details]) if silent else draws.one(details)
    facts = scene(draws, details)
    claim = {name: facts[name] for name in CORE}
    claim[asked] = facts[asked] if holds else other(draws, asked, facts.get(asked, ""))
    return f"{told(draws, facts)} .", f"{told(draws, claim)} ."

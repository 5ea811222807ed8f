"""Generated chats of two people who make an appointment, and their agreement: the stand-in for dialogue summaries.

The first proposal is accepted, moved to another day, or declined with a reason. Between these lines is small talk, which the
summary must leave out. No chat occurs in two splits.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws, words

VERSION = 1
SPLITS = {"train": 4_000, "validation": 300, "test": 300}
SEED = 20_240_605

PEOPLE = words("Ana Ben Carla David Emma Frank Greta Hugo Ines Jonas Kira Leo Mona Nils Olga Paul Rosa Sam Tina Victor")
PLANS = words("go swimming|see a film|play chess|have lunch|go for a walk|study maths|cook dinner|visit the museum", "|")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
TIMES = words("noon|2 pm|3 pm|4 pm|5 pm|6 pm|7 pm|8 pm", "|")
PLACES = words("the station|the old bridge|the library|my place|the main gate|the bus stop", "|")
REASONS = {
    "I have to work": "has to work",
    "I am ill": "is ill",
    "my parents are visiting": "has visitors",
    "I have an exam": "has an exam",
}
OPENINGS = words("Hi|Hello|Hey", "|")
CHAT = words("The weather is so nice today!|I just had coffee.|My phone is almost dead.|Long time no see!|I slept badly.", "|")
ANSWERS = words("Oh yes.|I see.|Same here.|Haha.", "|")


def _chat(draws: Draws) -> tuple[str, str]:
    """Return (dialogue, summary)."""
    one, other = draws.some(PEOPLE, 2)
    plan, day, time, place = draws.one(PLANS), draws.one(DAYS), draws.one(TIMES), draws.one(PLACES)
    lines = [f"{one}: {draws.one(OPENINGS)} {other}!"]
    if draws.chance(0.5):
        lines += [f"{one}: {draws.one(CHAT)}", f"{other}: {draws.one(ANSWERS)}"]
    lines.append(f"{one}: Shall we {plan} on {day}?")
    reply = draws.below(3)
    if reply == 2:
        reason = draws.one([*REASONS])
        lines += [f"{other}: Sorry, {reason}.", f"{one}: What a pity. Another time!"]
        return "\n".join(lines), f"{one} wants to {plan} on {day}, but {other} {REASONS[reason]}."
    if reply == 1:
        later = draws.one([d for d in DAYS if d != day])
        lines += [f"{other}: {day} is bad for me. {later}?", f"{one}: {later} is fine."]
        day = later
    else:
        lines.append(f"{other}: {draws.one(['Sure!', 'Good idea.', 'With pleasure.'])}")
    lines.append(f"{one}: {time} at {place}?")
    if draws.chance(0.3):
        later = draws.one([t for t in TIMES if t != time])
        lines += [f"{other}: Rather {later}.", f"{one}: OK, {later}."]
        time = later
    lines.append(f"{other}: {draws.one(['See you there!', 'OK, see you.', 'Great!'])}")
    where = place.replace("my", f"{one}'s")
    return "\n".join(lines), f"{one} and {other} will {plan} on {day}. They meet at {where} at {time}."


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text_input` (dialogue) and `text` (summary) of a split."""
    draws, seen = Draws(SEED), set()
    columns: dict[str, list[Any]] = {}
    for name, rows in SPLITS.items():
        columns = {"text_input": [], "text": []}
        while len(columns["text"]) < rows:
            dialogue, summary = _chat(draws)
            if dialogue in seen:
                continue
            seen.add(dialogue)
            columns["text_input"].append(dialogue)
            columns["text"].append(summary)
        if name == split:
            break
    return columns

"""Generated chats of two people who make an appointment, and their agreement: the stand-in for dialogue summaries.

The first proposal is accepted, moved to another day, or declined with a reason. Between these lines is small talk, which the
summary must leave out.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.synthetic import StandIn, contents
from dpbench.data.synthetic.draws import Draws, columns_of

WORDS = contents("chats")


def _chat(draws: Draws) -> tuple[str, str]:
    """Return (dialogue, summary)."""
    one, other = draws.some(WORDS["people"], 2)
    plan, day, time, place = (draws.one(WORDS[name]) for name in ("plans", "days", "times", "places"))
    lines = [f"{one}: {draws.one(WORDS['openings'])} {other}!"]
    if draws.chance(0.5):
        lines += [f"{one}: {draws.one(WORDS['small_talk'])}", f"{other}: {draws.one(WORDS['replies'])}"]
    lines.append(f"{one}: Shall we {plan} on {day}?")
    reply = draws.below(3)
    if reply == 2:
        reason = draws.one([*WORDS["reasons"]])
        lines += [f"{other}: Sorry, {reason}.", f"{one}: What a pity. Another time!"]
        return "\n".join(lines), f"{one} wants to {plan} on {day}, but {other} {WORDS['reasons'][reason]}."
    if reply == 1:
        later = draws.one([d for d in WORDS["days"] if d != day])
        lines += [f"{other}: {day} is bad for me. {later}?", f"{one}: {later} is fine."]
        day = later
    else:
        lines.append(f"{other}: {draws.one(WORDS['agreements'])}")
    lines.append(f"{one}: {time} at {place}?")
    if draws.chance(0.3):
        later = draws.one([t for t in WORDS["times"] if t != time])
        lines += [f"{other}: Rather {later}.", f"{one}: OK, {later}."]
        time = later
    lines.append(f"{other}: {draws.one(WORDS['farewells'])}")
    where = place.replace("my", f"{one}'s")
    return "\n".join(lines), f"{one} and {other} will {plan} on {day}. They meet at {where} at {time}."


def generate(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text_input` (dialogue) and `text` (summary) of a split; no dialogue occurs twice."""
    return columns_of(stand_in, split, ("text_input", "text"), _chat, keys=1)

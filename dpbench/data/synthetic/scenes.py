"""Scenes for pairs of texts: who does what to which thing and, where they are stated, its colour, the place and the time.

Of these are the stand-ins for MNLI and SNLI, RTE, QNLI, QQP and BoolQ, and for SQuAD and DROP, whose answers are texts. A share
`NOISE` of the labels is moved to the next class. No pair of texts occurs twice, within or across splits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpbench.data.synthetic import StandIn, contents
from dpbench.data.synthetic.draws import Draws, columns_of, labelled

NOISE = 0.02
CORE = {"who": "who", "action": "actions", "thing": "things"}
WORDS = contents("scenes")
DETAILS: dict[str, list[str]] = WORDS["details"]

Scene = dict[str, str]


def scene(draws: Draws, details: list[str]) -> Scene:
    """Draw who, action and thing, and a value of each of `details`."""
    core = {name: draws.one(WORDS[words]) for name, words in CORE.items()}
    return core | {name: draws.one(DETAILS[name]) for name in details}


def another(draws: Draws, name: str, value: str) -> str:
    """Draw another value of a detail."""
    return draws.one([v for v in DETAILS[name] if v != value])


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def sentence(draws: Draws, facts: Scene) -> str:
    """Return one sentence that states all `facts`."""
    thing = f"{facts['colour']} {facts['thing']}" if "colour" in facts else facts["thing"]
    text = f"{facts['who']} {facts['action']} {article(thing)}"
    if "place" in facts:
        text = f"{text} {facts['place']}"
    if "time" in facts:
        text = f"{facts['time']} , {text}" if draws.chance(0.4) else f"{text} {facts['time']}"
    return f"{text} ."


def _passage(draws: Draws, *scenes: Scene) -> str:
    """Return a sentence for each of two scenes, in any order."""
    sentences = [sentence(draws, facts) for facts in scenes]
    if draws.chance(0.5):
        sentences.reverse()
    return " ".join(sentences)


def _pairs(stand_in: StandIn, split: str, classes: int, draw: Callable[[Draws, int], tuple[str, str]]) -> dict[str, list[Any]]:
    """Return `text`, `text_pair` and `label` of a split; `draw` draws the two texts of a label."""
    return labelled(
        stand_in,
        split,
        label=lambda draws: draws.below(classes),
        texts=draw,
        noisy=lambda draws, label: (label + 1) % classes if draws.chance(NOISE) else label,
    )


def _premise_and_hypothesis(draws: Draws, details: list[str], silent: bool, holds: bool) -> tuple[str, str]:
    """Draw a premise and a hypothesis, which repeats who, action and thing, and states one detail.

    So no hypothesis reveals its label without the premise.

    Args:
        details: the details that the premise states.
        silent: whether the hypothesis states another detail than those.
        holds: whether the hypothesis states the value of the premise.
    """
    detail = draws.one([d for d in DETAILS if d not in details]) if silent else draws.one(details)
    facts = scene(draws, details)
    claim = {name: facts[name] for name in CORE}
    claim[detail] = facts[detail] if holds else another(draws, detail, facts.get(detail, ""))
    return sentence(draws, facts), sentence(draws, claim)


def entailment(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` (premise), `text_pair` (hypothesis) and `label`: 0 entailment, 1 neutral, 2 contradiction.

    The premise states the hypothesis' detail, no detail of that kind, or another value of it.
    """

    def draw(draws: Draws, label: int) -> tuple[str, str]:
        return _premise_and_hypothesis(draws, draws.some(list(DETAILS), 2), silent=label == 1, holds=label == 0)

    return _pairs(stand_in, split, 3, draw)


def claims(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` (premise), `text_pair` (hypothesis) and `label`: 0 entailment, 1 neutral or contradicted."""

    def draw(draws: Draws, label: int) -> tuple[str, str]:
        details = draws.some(list(DETAILS), 2)
        return _premise_and_hypothesis(draws, details, silent=label == 1 and draws.chance(0.5), holds=label == 0)

    return _pairs(stand_in, split, 2, draw)


def answers(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` (question), `text_pair` (sentence) and `label`: 0 if the sentence states the detail asked for, else 1."""

    def draw(draws: Draws, label: int) -> tuple[str, str]:
        details = draws.some(list(DETAILS), 2)
        detail = draws.one(details) if label == 0 else next(d for d in DETAILS if d not in details)
        facts = scene(draws, details)
        return draws.one(WORDS["answers"][detail]).format(**facts), sentence(draws, facts)

    return _pairs(stand_in, split, 2, draw)


def paraphrases(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return the questions `text` and `text_pair`, and `label`: 1 if every detail that they name is the same, else 0."""

    def draw(draws: Draws, label: int) -> tuple[str, str]:
        detail = draws.one(list(DETAILS))
        first = scene(draws, [detail])
        second = first if label else first | {detail: another(draws, detail, first[detail])}
        forms = draws.some(WORDS["paraphrases"][detail], 2)
        return forms[0].format(**first), forms[1].format(**second)

    return _pairs(stand_in, split, 2, draw)


def doubts(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text` (passage), `text_pair` (question about one detail that the passage states) and `label`: 0 no, 1 yes."""

    def draw(draws: Draws, label: int) -> tuple[str, str]:
        details = draws.some(list(DETAILS), 2)
        facts, aside = scene(draws, details), scene(draws, [draws.one(list(DETAILS))])
        detail = draws.one(details)
        value = facts[detail] if label == 1 else another(draws, detail, facts[detail])
        return _passage(draws, facts, aside), WORDS["doubts"][detail].format(value=value, **facts)

    return _pairs(stand_in, split, 2, draw)


def readings(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text_title`, `text_context` (two sentences), `text_question` about one of them, and `answers`.

    An answer is a part of the context and has two lists, `text` and `answer_start`.
    """

    def draw(draws: Draws) -> tuple[str, str, str, str]:
        asked = draws.one(list(WORDS["readings"]))
        details = draws.some(list(DETAILS), 2)
        if asked in DETAILS and asked not in details:
            details[0] = asked
        facts, aside = scene(draws, details), scene(draws, [draws.one(list(DETAILS))])
        while aside["thing"] == facts["thing"]:  # one passage, one answer
            aside = scene(draws, [draws.one(list(DETAILS))])
        passage = _passage(draws, facts, aside)
        return f"the {facts['thing']}", passage, draws.one(WORDS["readings"][asked]).format(**facts), facts[asked]

    columns = columns_of(stand_in, split, ("text_title", "text_context", "text_question", "answers"), draw, keys=4)
    pairs = zip(columns["text_context"], columns["answers"], strict=True)
    return columns | {"answers": [{"text": [answer], "answer_start": [context.index(answer)]} for context, answer in pairs]}


def tallies(stand_in: StandIn, split: str) -> dict[str, list[Any]]:
    """Return `text_passage` about two people's things, `text_question` that needs arithmetic, and `answers`.

    An answer has two lists, `spans` and `types`.
    """

    def draw(draws: Draws) -> tuple[str, str, str]:
        first, second = draws.some(WORDS["who"], 2)
        thing = f"{draws.one(WORDS['things'])}s".replace("shs", "shes").replace("chs", "ches").replace("xs", "xes")
        one, two = draws.some([str(n) for n in range(2, 13)], 2)
        passage = f"{first} had {one} {thing} . {second} had {two} {thing} . it was {draws.one(WORDS['seasons'])} ."
        facts = {"thing": thing, "first": first, "one": one, "more": first if int(one) > int(two) else second}
        facts |= {"total": str(int(one) + int(two)), "difference": str(abs(int(one) - int(two)))}
        question, answer = draws.one(WORDS["tallies"])
        return passage, question.format(**facts), answer.format(**facts)

    columns = columns_of(stand_in, split, ("text_passage", "text_question", "answers"), draw, keys=3)
    types = ["number" if answer.isdigit() else "span" for answer in columns["answers"]]
    return columns | {"answers": [{"spans": [a], "types": [t]} for a, t in zip(columns["answers"], types, strict=True)]}

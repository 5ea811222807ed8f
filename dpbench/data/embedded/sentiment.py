"""Generated film review sentences: the stand-in for SST-2.

One word does not decide: negation and weakening reverse a clause, and where two clauses disagree the main clause counts
("X but Y", "although X , Y", "Y , even if X"). 2 % of the labels are reversed, so no model reaches 100 %.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws, labelled, words

VERSION = 1
SPLITS = {"train": 8_000, "validation": 1_000}
SEED = 20_240_601
NOISE = 0.02

ADJECTIVES = (
    words("""dull tedious clumsy lifeless shallow bland predictable forgettable awkward contrived dreary stale muddled pointless
    grating sloppy tiresome hollow incoherent lazy overlong unfunny wooden cheap annoying dreadful painful ridiculous soulless
    uninspired"""),
    words("""wonderful charming moving brilliant inventive gripping elegant delightful graceful honest warm witty thrilling
    beautiful memorable clever touching fresh powerful sincere dazzling funny stirring captivating tender lively masterful
    rewarding absorbing luminous"""),
)
VERBS = (
    words("drags|falls apart|misfires|goes nowhere|wears thin|collapses|fizzles|disappoints|bores|stumbles", "|"),
    words("shines|soars|works|delights|comes alive|pays off|sparkles|surprises|satisfies|impresses", "|"),
)
NOUNS = (
    words("a mess|a waste of time|a chore|a failure|a bore|a disaster|a letdown|a missed chance", "|"),
    words("a triumph|a joy|a treat|a gem|a pleasure|a success|a small miracle|a revelation", "|"),
)
SUBJECTS = words("""film movie story plot script dialogue acting cast pacing ending soundtrack camera direction humor romance
drama comedy thriller opening performance screenplay music scenery premise second_act finale hero villain lead narration editing
costume_work documentary sequel remake adaptation""")
ABOUT = words("""a_young_painter two_brothers a_retired_teacher a_small_town the_war a_lost_dog a_family_dinner an_old_sailor
a_bank_robbery a_long_winter the_ocean a_chess_player a_train_journey three_sisters a_summer_camp a_village_priest""")
BACKGROUND = words(
    "set in the nineties|shot in black and white|told in three parts|running two hours|based on a novel|filmed in a desert|"
    "released last autumn|spoken mostly in french|made by a first - time director|seen at a festival",
    "|",
)
OPENERS = words("frankly ,|in the end ,|all told ,|to my mind ,|as a whole ,|for the most part ,|this time ,|once again ,", "|")
STRONG = words("very really truly utterly deeply remarkably quite genuinely")
TURNERS = words("not|never|hardly|far from|anything but|by no means", "|")
TAILS = words("from start to finish|in almost every scene|for long stretches|throughout|at every turn", "|")


def _noun(draws: Draws) -> str:
    subject = draws.skewed(SUBJECTS).replace("_", " ")
    if draws.chance(0.25):
        return f"the {subject} about {draws.one(ABOUT).replace('_', ' ')}"
    return f"{draws.one(['the', 'this', 'its', 'the'])} {subject}"


def _clause(draws: Draws, label: int) -> str:
    """Draw a clause with the sentiment `label` (0 or 1); about one in eight negates a word of the other side."""
    turned = draws.chance(0.12)
    side = 1 - label if turned else label
    form = draws.below(10)
    if form < 6:
        word = draws.one(ADJECTIVES[side])
        if turned:
            word = f"{draws.one(TURNERS)} {word}"
        elif draws.chance(0.35):
            word = f"{draws.one(STRONG)} {word}"
        return f"{_noun(draws)} is {word}"
    if form < 8:
        verb = draws.one(VERBS[side])
        return f"{_noun(draws)} {'never ' if turned else ''}{verb}"
    return f"{_noun(draws)} is {draws.one(TURNERS) + ' ' if turned else ''}{draws.one(NOUNS[side])}"


def _sentence(draws: Draws, label: int) -> str:
    form = draws.below(100)
    if form < 68:
        text = _clause(draws, label)
    elif form < 86:
        text = f"{_clause(draws, label)} and {_clause(draws, label)}"
    else:
        main, side = _clause(draws, label), _clause(draws, 1 - label)
        text = draws.one([f"{side} , but {main}", f"although {side} , {main}", f"{main} , even if {side}"])
    if draws.chance(0.25):
        text = f"{draws.one(BACKGROUND)} , {text}"
    elif draws.chance(0.25):
        text = f"{draws.one(OPENERS)} {text}"
    if draws.chance(0.2):
        text = f"{text} {draws.one(TAILS)}"
    return f"{text} ."


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` and `label` (0 negative, 1 positive) of a split; no sentence occurs twice, within or across splits."""
    return labelled(
        SEED,
        SPLITS,
        split,
        label=lambda draws: draws.below(2),
        texts=lambda draws, label: (_sentence(draws, label),),
        noisy=lambda draws, label: 1 - label if draws.chance(NOISE) else label,
    )

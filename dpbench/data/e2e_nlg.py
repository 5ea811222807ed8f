"""E2E: restaurant descriptions from up to eight slots, several references an input."""

from __future__ import annotations

from typing import Any

from dpbench.data import triples
from dpbench.data.described import Described

PLUGIN = {
    "kind": "dataset",
    "name": "e2e_nlg",
    "version": 1,
    "summary": "E2E NLG: restaurant descriptions from slots and values",
    "task": "table_to_text",
    "folder": "e2e_nlg",
    "files": {"train": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"},
    "columns": {"text_input": "meaning_representation", "text": "human_reference"},
    "hub": None,
    "embedded": "restaurants",
    # The published schema: every value that a closed slot may take.
    "slots": {
        "name": None,
        "eatType": ["coffee shop", "pub", "restaurant"],
        "food": ["Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"],
        "priceRange": ["cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"],
        "customer rating": ["low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"],
        "area": ["city centre", "riverside"],
        "familyFriendly": ["yes", "no"],
        "near": None,
    },
    # What one says about places to eat, written down here without looking at any row.
    "words": """a an the this that these those it its is are was be been being has have had having does do not no doesn't don't
    isn't aren't it's that's you're there's they're nor neither and or but with without in on at by near nearby next to from for
    of off as than also both well very quite while where which who you your they their them there here can could will would if
    although though however even still so too yet only just all any some every most more less least much many few other one two
    three four five out up down over under around within between located situated found lies sits stands based place places
    venue spot establishment eatery restaurant restaurants pub pubs coffee shop shops cafe café bar diner house bistro takeaway
    offers offer offering serves serve serving served provides provide providing sells sell selling features featuring named
    called known cooks specialises specializes specialising food foods cuisine cuisines meal meals dish dishes menu breakfast
    lunch dinner drinks drink snacks wine cheese fruit burgers pasta sushi style type kind selection variety range options
    chinese english fast french indian italian japanese british traditional price prices priced pricing cheap cheaper
    inexpensive affordable low lower moderate moderately mid average high higher highly expensive pricey costly cost costs
    reasonable reasonably budget value pounds £ £20 £25 £30 20 25 30 customer customers rating ratings rated rate rates star
    stars review reviews score scored scores received receives gets given 1 2 3 4 5 poor poorly bad good great excellent best
    nice decent lovely quality popular perfect ideal family families friendly unfriendly non kid kids child children adult
    adults young people everyone suitable welcome welcomes welcoming allowed area centre center city town riverside river side
    bank beside close right heart local along alongside looking want wants try visit go eat eating enjoy dine dining find take
    bring come open atmosphere environment setting service yes decently s""",
    "licence": "CC BY-SA 4.0",
    "citation": "Novikova et al., SIGDIAL 2017; Dusek et al., CSL 2020",
}


def described(columns: dict[str, list[Any]]) -> list[Described]:
    """Return the fields (slot, value) of `name[The Mill], area[riverside]`, in the order of the row."""
    known: Any = PLUGIN["slots"]
    return [
        Described(triples.slots("meaning_representation", table, known), (text,))
        for table, text in zip(columns["text_input"], columns["text"], strict=True)
    ]

"""Generated premises and hypotheses: the stand-in for RTE. As for MNLI, but neutral and contradicted are one class."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws
from dpbench.data.embedded.scenes import CORE, DETAILS, other, pairs, scene, told

VERSION = 1
SPLITS = {"train": 2_400, "validation": 400}
SEED = 20_261_123


def _pair(draws: Draws, label: int) -> tuple[str, str]:
    said = draws.some(list(DETAILS), 2)
    silent = label == 1 and draws.chance(0.5)
    asked = draws.one([d for d in DETAILS if d not in said]) if silent else draws.one(said)
    facts = scene(draws, said)
    claim = {name: facts[name] for name in CORE}
    claim[asked] = facts[asked] if label == 0 else other(draws, asked, facts.get(asked, ""))
    return f"{told(draws, facts)} .", f"{told(draws, claim)} ."


def generate(split: str) -> dict[str, list[Any]]:
    """`text` (premise), `text_pair` (hypothesis) and `label`: 0 entailment, 1 not entailment."""
    return pairs(SEED, SPLITS, split, 2, _pair)

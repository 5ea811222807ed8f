"""Generated premises and hypotheses: the stand-in for MNLI.

Every hypothesis repeats who, action and thing, and states one detail. The premise states the same (entailment), no detail of that
kind (neutral), or another value (contradiction), so that no hypothesis reveals its label without the premise.
"""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws
from dpbench.data.embedded.scenes import DETAILS, inferred, pairs

VERSION = 1
SPLITS = {"train": 6_000, "validation": 1_000}
SEED = 20_240_603


def _pair(draws: Draws, label: int) -> tuple[str, str]:
    details = draws.some(list(DETAILS), 2)
    return inferred(draws, details, silent=label == 1, holds=label == 0)


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` (premise), `text_pair` (hypothesis) and `label`: 0 entailment, 1 neutral, 2 contradiction."""
    return pairs(SEED, SPLITS, split, 3, _pair)

"""Generated premises and hypotheses: the stand-in for RTE. As for MNLI, but neutral and contradicted are one class."""

from __future__ import annotations

from typing import Any

from dpbench.data.embedded.draws import Draws
from dpbench.data.embedded.scenes import DETAILS, inferred, pairs

VERSION = 1
SPLITS = {"train": 2_400, "validation": 400}
SEED = 20_261_123


def _pair(draws: Draws, label: int) -> tuple[str, str]:
    details = draws.some(list(DETAILS), 2)
    return inferred(draws, details, silent=label == 1 and draws.chance(0.5), holds=label == 0)


def generate(split: str) -> dict[str, list[Any]]:
    """Return `text` (premise), `text_pair` (hypothesis) and `label`: 0 entailment, 1 not entailment."""
    return pairs(SEED, SPLITS, split, 2, _pair)

"""Held-out rows: training rows that are never drawn, for choosing settings without the split that a table is evaluated on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import numpy as np

from dpbench.errors import DpbenchError
from dpbench.validation import omitted

HELD_OUT: Any = omitted(0.2, gt=0, lt=1, description="Share of the training rows that is held out.")
"""By default as He et al. split the rows of SST-2."""

ChosenBy = Literal["content"] | None
CHOSEN_BY: Any = omitted(
    description="Derived, no need to give it: rows are chosen by what they hold. Such runs get other names than "
    "those of an earlier dpbench, which chose by the place of a row."
)

S = TypeVar("S")


def state_choice(settings: S, chooses: bool) -> S:
    """Return settings that say in `chosen_by` whether they choose rows by content; for a validator at the end of a model.

    Raises:
        ValueError: they name it, and choose nothing.
    """
    if getattr(settings, "chosen_by", None) is not None and not chooses:
        raise ValueError("chosen_by: nothing is chosen here, leave it out")
    object.__setattr__(settings, "chosen_by", "content" if chooses else None)  # a frozen model, while it is validated
    return settings


def share_of(key: bytes) -> float:
    """Return a number in [0, 1) that depends on the row alone and is uniform over rows."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64


def is_held_out(keys: Iterable[bytes], share: float, where: str) -> np.ndarray:
    """Return [N] bool, whether each row is held out; equal rows stay together.

    Guarantee: a row's place depends on that row alone, so adding or removing one changes one row of what can be drawn.

    Args:
        keys: what identifies a row: its text, its pixels; where: the dataset, for the error.

    Raises:
        DpbenchError: all rows or none are held out.
    """
    held_out = np.asarray([share_of(b"rest\0" + key) < share for key in keys])
    if held_out.all() or not held_out.any():
        how = "all" if held_out.all() else "none"
        raise DpbenchError(
            f"held_out {share:g} holds out {how} of the {len(held_out)} training rows of {where}",
            "choose another held_out, or raise train_limit",
        )
    return held_out

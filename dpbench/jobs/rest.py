"""The rest: training rows that cannot be drawn, for choosing settings without the split that a table is evaluated on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from dpbench.errors import DpbenchError

SHARE = 0.2
"""Of the training rows, as He et al. split those of SST-2."""


ChosenBy = Literal["content"] | None
CHOSEN_BY: Any = Field(
    None,
    exclude_if=lambda v: v is None,
    description="Derived, no need to give it: rows are chosen by what they hold. Names such runs apart from those of an earlier "
    "dpbench, which chose by the place of a row.",
)

S = TypeVar("S")


def state_choice(settings: S, chooses: bool) -> S:
    """Settings that say in `chosen_by` whether they choose rows by content; for a validator at the end of a model.

    Raises:
        ValueError: they were given it, and choose nothing.
    """
    if getattr(settings, "chosen_by", None) is not None and not chooses:
        raise ValueError("chosen_by: nothing is chosen here, leave it out")
    object.__setattr__(settings, "chosen_by", "content" if chooses else None)  # a frozen model that is still being made
    return settings


def share_of(key: bytes) -> float:
    """A number in [0, 1) that is the row's own: uniform over rows, and no other row has a say in it."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64


def in_rest(keys: Iterable[bytes], share: float, where: str) -> np.ndarray:
    """[N] bool, whether each row belongs to the rest; equal rows stay together.

    Guarantee: a row's place depends on that row alone, so adding or removing one changes one row of what can be drawn.

    Args:
        keys: what tells a row apart: its text, its pixels; where: the dataset, for the error.

    Raises:
        DpbenchError: all rows or none belong to the rest.
    """
    found = np.asarray([share_of(b"rest\0" + key) < share for key in keys])
    if found.all() or not found.any():
        how = "a rest of all" if found.all() else "no rest of the"
        raise DpbenchError(
            f"held_out {share:g} makes {how} {len(found)} training rows of {where}",
            "choose another held_out, or raise train_limit",
        )
    return found

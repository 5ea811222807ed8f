"""The rest: training rows that cannot be drawn, for choosing settings without the split that a table is evaluated on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from dpbench.errors import DpbenchError

SHARE = 0.2
"""Of the training rows, as He et al. split those of SST-2."""


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

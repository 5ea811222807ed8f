"""What came of one method on one model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpbench.errors import DpbenchError

EXPECTED, RATE = 4.0, 0.1


@dataclass(frozen=True)
class Outcome:
    """verdict: right, refused or wrong; why: empty for right."""

    verdict: str
    why: str = ""


def refused(refusal: DpbenchError) -> Outcome:
    if len(refusal.what) < 10 or not refusal.hint:
        return Outcome("wrong", f"a refusal that does not help: {refusal}")
    return Outcome("refused", refusal.what)


def quietly(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()

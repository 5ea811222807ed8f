"""Check arguments of functions: known names, integers, finite numbers, flags. Each error names the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from dpbench.errors import DpbenchError, unknown


def known_name(value: Any, kind: str, names: Iterable[str]) -> None:
    """Check that `value` is exactly one of `names`.

    Args:
        kind: what kind of thing is named, for the error.

    Raises:
        DpbenchError: it is not one of them; names the nearest.
    """
    known = list(names)
    if not isinstance(value, str) or value not in known:
        raise unknown(kind, value, known)


def _is_a(kind: type, value: Any) -> bool:
    """Return whether a value is a number of this kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def whole_number(value: Any, name: str, least: int = 1, most: int = 2**53, hint: str = "") -> int:
    """Return `value` as an int in [least, most]; bools and all floats are refused.

    Raises:
        DpbenchError: it is not such a number.
    """
    if not _is_a(Integral, value):
        raise DpbenchError(f"{name} {value!r} is not a whole number", hint or f"give an int from {least:,} on")
    if value < least:
        raise DpbenchError(f"{name} {value} is below {least}", hint or f"give an int from {least:,} on")
    if value > most:
        raise DpbenchError(f"{name} {value} is above {most:,}", hint or f"give an int up to {most:,}")
    return int(value)


def finite_number(value: Any, name: str, least: float = -math.inf, above: float = -math.inf, hint: str = "") -> float:
    """Return `value` as a finite int or float that is at least `least` and more than `above`; bools are refused.

    Raises:
        DpbenchError: it is not such a number.
    """
    if above == 0:
        kind = "a positive number"
    elif least > -math.inf:
        kind = f"a finite number >= {least:g}"
    else:
        kind = "a finite number"
    if not _is_a(Real, value):
        raise DpbenchError(f"{name} {value!r} is not {kind}", hint)
    if not (math.isfinite(value) and value >= least and value > above):
        raise DpbenchError(f"{name} {value} is not {kind}", hint)
    return value if type(value) in (int, float) else float(value)  # an int stays an int, so that a record's text does not change


def between(value: Any, name: str, low: float, high: float, hint: str = "") -> float:
    """Return `value` as a number in (low, high), both ends excluded.

    Raises:
        DpbenchError: it is not such a number.
    """
    if not _is_a(Real, value) or not low < value < high:
        raise DpbenchError(f"{name} {value!r} is not between {low:g} and {high:g}", hint)
    return value if type(value) in (int, float) else float(value)


def flag(value: Any, name: str) -> None:
    """Check that `value` is True or False.

    Raises:
        DpbenchError: it is something else: a text such as "false" would count as true.
    """
    if not isinstance(value, bool):
        raise DpbenchError(f"{name} {value!r} is neither True nor False", "give a bool")

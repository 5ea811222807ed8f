"""The error for users: what is wrong, and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DpbenchError(Exception):
    """An error that the user can correct.

    Args:
        what: what is wrong, with the name of the file and key, tensor, module or dataset.
        hint: what to do about it, in one sentence.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what if not hint else f"{what}\n  hint: {hint}")
        self.what = what
        self.hint = hint


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a sentence that gives the valid name nearest to `name` and lists the valid ones."""
    known = sorted({str(n) for n in names})
    by_lower_case = {n.lower(): n for n in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.5)
    if close:
        return f"did you mean {by_lower_case[close[0]]!r}? known: {', '.join(known)}"
    return f"known: {', '.join(known) or 'none'}"


def unknown(kind: str, name: str, names: Iterable[str], where: str = "") -> DpbenchError:
    """Return the error for a name that is not in a registry."""
    prefix = f"{where}: " if where else ""
    return DpbenchError(f"{prefix}unknown {kind} {name!r}", nearest(name, names))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: by torch on a GPU, by torch or Python on the CPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)

"""NAME: say here what the function does, and where it was published."""

from __future__ import annotations

# `kind`, `name`, `version` and `summary` are required. Raise `version` with every change that changes numbers.
PLUGIN = {"kind": "function", "name": "NAME", "version": 1, "summary": "what the function does, in one line"}


def factor(norms, bound, gamma):
    """Return the factors [B] that an example's gradient is multiplied by, for its norms [B].

    Guarantee: factor x norm <= bound for every finite norm. The contract tests try it from the smallest to the largest float.

    Args:
        norms: float32 or float64, at least 0; bound: above 0; gamma: a stability constant, which a function may ignore.
    """
    return bound / (norms + bound)  # an example: never more than the bound, half of it where the norm is the bound

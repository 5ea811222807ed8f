"""Epsilon of releases, and the noise multiplier for an epsilon; calibrations are cached, as each costs seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import astuple
from functools import cache
from typing import Any, get_args

from dpbench import paths
from dpbench.arguments import finite_number, known_name, whole_number
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, sha256_text, write_cache
from dpbench.privacy.accountants import ACCOUNTANTS, Accountant, NoiseLaw, Relation, Release, Unsupported, by_library, versions

__all__ = ["Accountant", "NoiseLaw", "Relation", "Release", "Unsupported", "calibrate", "composed", "epsilon", "versions"]

TOLERANCE = 0.01
"""A calibrated epsilon lies in [(1 - TOLERANCE) x target, target]."""

_INTERVAL = 1e-4  # of the privacy loss; pessimistic rounding, so a coarser grid only over-states epsilon
_FINE = 0.3  # noise multipliers below it have privacy losses of 1 / noise_multiplier^2: the grid grows with them
_COARSER = 16  # grid by which most of a calibration's questions are answered
_SMALL = 0.01  # an epsilon below it is computed again on finer grids, until it is a hundred steps
_FINEST = 1e-9

SMALLEST_DELTA = 1e-14
"""PLD's tails weigh up to 1e-15 a composition, which it must count as infinite privacy loss: near that, epsilon says nothing."""

LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
"""Noise multipliers that PLD is asked about. Below, epsilon is above 500,000 for one release of the whole dataset."""

_REACHED = 0.05  # an epsilon that RDP's highest order, 1024, reaches at every delta that PLD carries
_TRIES = 60  # halvings of an interval, after which its ends are neighbours in double precision


def epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    relation: Relation = "add_or_remove",
    accountant: Accountant = "pld",
    noise: NoiseLaw = "gaussian",
    coarser: int = 1,
) -> float:
    """Epsilon of `steps` Poisson-sampled releases with Gaussian or Laplace noise.

    Args:
        noise_multiplier: noise std / add-or-remove sensitivity, whatever the relation; of Laplace noise its scale b in place of
            the std (which is sqrt(2) b), and the L1 sensitivity.
        sample_rate: of each example; 1 means every example in every step.
        relation: `add_or_remove` or `replace_one`; goes to the accountant only.
        accountant: `pld` (reported) or `rdp`.
        noise: `gaussian` or `laplace`.
        coarser: PLD's grid, in steps of the one that values are reported by: the value is larger, by at most that step for each
            release, and takes less time.

    Guarantee: finite, and never below the true epsilon of these releases, up to rounding in double precision.

    Raises:
        Unsupported: RDP of dp-accounting refuses Poisson sampling with replace-one, or of Laplace noise.
        DpbenchError: an unknown name, a number out of range, or a delta or noise multiplier that PLD cannot carry.
    """
    release = Release(noise_multiplier, sample_rate, steps)
    return _checked((release,), delta, relation, accountant, coarser, noise)


def _checked(
    releases: tuple[Release, ...], delta: Any, relation: str, accountant: str, coarser: int, noise: str = "gaussian"
) -> float:
    """`_spent` of what is known and in range; releases of no step cost nothing."""
    known_name(relation, "neighbouring relation", get_args(Relation))
    known_name(accountant, "accountant", ACCOUNTANTS)
    known_name(noise, "noise", get_args(NoiseLaw))
    delta = _delta(delta, accountant)
    whole_number(coarser, "coarser")
    releases = tuple(one for one in releases if one.steps)
    for one in releases if accountant == "pld" else ():
        if not LEAST_NOISE <= one.noise_multiplier <= MOST_NOISE:
            raise DpbenchError(
                f"no epsilon for noise_multiplier {one.noise_multiplier:g}: PLD answers from {LEAST_NOISE:g} to {MOST_NOISE:g}",
                "less protects nothing and more leaves nothing of a gradient",
            )
    return _spent(releases, delta, relation, accountant, coarser, noise) if releases else 0.0


def _delta(delta: Any, accountant: str = "pld") -> float:
    """`delta` in (0, 1), for PLD not below what it can carry.

    Raises:
        DpbenchError: it is not.
    """
    delta = float(finite_number(delta, "delta", above=0, hint="0 < delta < 1"))
    if delta >= 1:
        raise DpbenchError(f"delta {delta:g} is not below 1", "0 < delta < 1")
    if delta < SMALLEST_DELTA and accountant == "pld":
        raise DpbenchError(
            f"delta {delta:g} is below {SMALLEST_DELTA:g}, the least that PLD carries in double precision",
            "take a larger delta, or ask the accountant rdp for an upper bound",
        )
    return delta


@cache
def _spent(releases: tuple[Release, ...], delta: float, relation: str, accountant: str, coarser: int, noise: str) -> float:
    """Epsilon of all releases by one accountant; PLD's grid is the coarsest that any of them may have.

    What is small against the grid is computed again on finer ones, unless a coarser one was asked for.
    """
    if accountant == "rdp":
        spent = by_library(releases, delta, relation, accountant, noise, 0.0)
        if not math.isfinite(spent):
            raise Unsupported(f"rdp has no finite epsilon for {releases}", "read the PLD value")
        return spent
    interval = coarser * max(_interval(one.noise_multiplier) for one in releases)
    spent = by_library(releases, delta, relation, accountant, noise, interval)
    while coarser == 1 and 0 < spent < min(_SMALL, 100 * interval) and interval > _FINEST:
        interval /= 10
        spent = min(spent, by_library(releases, delta, relation, accountant, noise, interval))
    if not math.isfinite(spent):
        raise DpbenchError(
            f"PLD has no finite epsilon at delta {delta:g}: that is within what its own rounding weighs",
            "take a larger delta, or ask the accountant rdp for an upper bound",
        )
    return spent


def calibrate(
    target: float,
    *,
    sample_rate: float,
    steps: int,
    delta: float,
    relation: Relation = "add_or_remove",
    noise: NoiseLaw = "gaussian",
) -> float:
    """The noise multiplier whose PLD epsilon is at most `target` and within 1 % of it.

    Raises:
        DpbenchError: an argument out of range, or no noise multiplier from 1e-3 to 1e6 has such an epsilon; says what was tried.
    """
    target = finite_number(target, "target epsilon", above=0, hint="give one above 0")
    known_name(relation, "neighbouring relation", get_args(Relation))
    known_name(noise, "noise", get_args(NoiseLaw))
    steps, delta = whole_number(steps, "steps", hint="calibrate for at least one step"), _delta(delta)
    sample_rate = Release(1.0, sample_rate, steps).sample_rate
    key: dict[str, object] = {
        "target": target,
        "sample_rate": sample_rate,
        "steps": steps,
        "delta": delta,
        "relation": relation,
        "interval": _INTERVAL,
        "tolerance": TOLERANCE,
        "library": versions()["pld"],
    }
    if noise != "gaussian":
        key["noise"] = noise
    path = paths.cache() / "calibrations" / f"{sha256_text(canonical_json(key))[:16]}.json"
    if (known := _cached(path, key)) is not None:
        return known
    found = _search(target, sample_rate, steps, delta, relation, noise)
    write_cache(path, json.dumps({"key": key, "noise_multiplier": found}) + "\n")
    return found


def _cached(path, key) -> float | None:  # type: ignore[no-untyped-def]
    try:
        stored = json.loads(path.read_text())
        return float(finite_number(stored["noise_multiplier"], "noise_multiplier", above=0)) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, DpbenchError):
        return None  # absent or damaged: calibrate again


def _interval(noise_multiplier: float) -> float:
    return _INTERVAL * max(1.0, (_FINE / noise_multiplier) ** 2)


def _search(target: float, sample_rate: float, steps: int, delta: float, relation: Relation, noise: NoiseLaw) -> float:
    """Bisection, started near the answer: far below it the accountant's grids take minutes and gigabytes."""
    setting = f"at sample_rate {sample_rate:g}, {steps} steps, delta {delta:g}, {relation}"

    def within(noise_multiplier: float, limit: float) -> bool:
        """Whether PLD's epsilon is at most `limit`: by a coarse grid, where that says it for certain, else by the fine one.

        Privacy losses are rounded up to the grid, each by less than its step, so the coarse value is never below the fine one
        and at most `steps` steps above it.
        """
        values: dict[str, Any] = {
            "noise_multiplier": noise_multiplier,
            "sample_rate": sample_rate,
            "steps": steps,
            "delta": delta,
            "noise": noise,
        }
        coarse = epsilon(**values, relation=relation, coarser=_COARSER)
        if coarse <= limit:
            return True
        if coarse - steps * _COARSER * _interval(noise_multiplier) > limit:
            return False
        return epsilon(**values, relation=relation) <= limit

    high = _start(target, sample_rate, steps, delta) * (2 if relation == "replace_one" else 1)
    for tried in range(_TRIES):
        if within(high, target):
            break
        if high >= MOST_NOISE:
            raise DpbenchError(
                f"epsilon {target:g} is out of reach {setting}: a noise multiplier of {MOST_NOISE:g} spends more",
                "take fewer steps, smaller batches, a larger delta, or a larger epsilon",
            )
        high = min(high * (1.2 if tried < 10 else 2.0), MOST_NOISE)
    low = max(high * 0.8, LEAST_NOISE)
    while within(low, target):
        if low <= LEAST_NOISE:
            raise DpbenchError(
                f"epsilon {target:g} {setting} is spent by no noise multiplier from {LEAST_NOISE:g} on: less protects nothing",
                "take a smaller epsilon",
            )
        low, high = max(low * 0.8, LEAST_NOISE), low
    return _halved(within, low, high, target, setting)


def _halved(within: Callable[[float, float], bool], low: float, high: float, target: float, setting: str) -> float:
    """The noise multiplier in (low, high], within the target at high alone, whose epsilon is near enough to it.

    Raises:
        DpbenchError: epsilon jumps over the target, as where delta alone covers it.
    """
    for _ in range(_TRIES):
        if not within(high, target * (1 - TOLERANCE)):
            return high
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle, target) else (middle, high)
    raise DpbenchError(
        f"no noise multiplier has an epsilon within {TOLERANCE:.0%} of {target:g} {setting}: at {high:.6g} it jumps over it",
        "take a larger epsilon, or a smaller delta",
    )


def _start(target: float, sample_rate: float, steps: int, delta: float) -> float:
    """A noise multiplier that RDP, cheap and never below PLD, says is enough of Gaussian noise: a start for Laplace's, too.

    RDP's orders end, so that it reaches no very small epsilon; the start is then where it says `_REACHED`, from where PLD's grids
    are small.
    """

    def spent(noise_multiplier: float) -> float:
        return epsilon(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps, delta=delta, accountant="rdp")

    enough = 1.0
    while enough < MOST_NOISE and spent(enough) > target:
        enough *= 2
    if enough >= MOST_NOISE:
        enough = 1.0
        while enough < MOST_NOISE and spent(enough) > _REACHED:
            enough *= 2
        return min(enough, MOST_NOISE)
    while enough > LEAST_NOISE * 1.2 and spent(enough / 1.2) <= target:
        enough /= 1.2
    return enough


def composed(
    releases: tuple[Release, ...],
    *,
    delta: float,
    relation: Relation = "add_or_remove",
    accountant: Accountant = "pld",
    coarser: int = 1,
) -> float:
    """Epsilon of several stages on the same examples, by one accountant: less than the sum of theirs.

    Args:
        releases: of each stage, with Gaussian noise and draws of its own; the rest as in `epsilon`.

    Raises:
        Unsupported, DpbenchError: as `epsilon`; or there is no stage.
    """
    if not releases:
        raise DpbenchError("no epsilon for no stage at all", "give the releases of one stage or more")
    return _checked(tuple(releases), delta, relation, accountant, coarser)


def calibrate_beside(
    target: float,
    spent: tuple[Release, ...],
    *,
    sample_rate: float,
    steps: int,
    delta: float,
    relation: Relation = "add_or_remove",
) -> float:
    """The noise multiplier of one more stage, so that PLD's epsilon of all is at most `target` and within 1 % of it.

    Args:
        spent: the stages before it, on the same examples.

    Raises:
        DpbenchError: the stages before have spent the target, or no noise multiplier up to 1e6 reaches it.
    """
    alone: dict[str, Any] = {"sample_rate": sample_rate, "steps": steps, "delta": delta, "relation": relation}
    least = calibrate(target, **alone)
    if not spent:
        return least
    key: dict[str, object] = {
        "target": target,
        "spent": [list(astuple(one)) for one in spent],
        **alone,
        "interval": _INTERVAL,
        "tolerance": TOLERANCE,
        "library": versions()["pld"],
    }
    path = paths.cache() / "calibrations" / f"{sha256_text(canonical_json(key))[:16]}.json"
    if (known := _cached(path, key)) is not None:
        return known

    def within(noise_multiplier: float, limit: float) -> bool:
        """Whether epsilon of all is at most `limit`; what a coarse grid says for certain, the fine one is not asked."""
        parts = (*spent, Release(noise_multiplier, sample_rate, steps))
        coarse = composed(parts, delta=delta, relation=relation, coarser=_COARSER)
        if coarse <= limit:
            return True
        slack = sum(one.steps for one in parts) * _COARSER * max(_interval(one.noise_multiplier) for one in parts)
        return coarse - slack <= limit and composed(parts, delta=delta, relation=relation) <= limit

    before = composed(spent, delta=delta, relation=relation, coarser=_COARSER)  # at most a little too large, and cheap
    if before >= target and (before := composed(spent, delta=delta, relation=relation)) >= target:
        raise DpbenchError(
            f"the stages before have spent epsilon {before:.4g}, which leaves nothing of {target:g}",
            "give them a smaller share of the budget",
        )
    low, high = least, least * 1.2
    while not within(high, target):
        low, high = high, high * 1.4
        if high > MOST_NOISE:
            raise DpbenchError(
                f"epsilon {target:g} is out of reach after {before:.4g}: a noise multiplier of {low:g} spends more",
                "give the stages before a smaller share of the budget",
            )
    high = _halved(within, low, high, target, f"after {before:.4g}")
    write_cache(path, json.dumps({"key": key, "noise_multiplier": high}) + "\n")
    return high

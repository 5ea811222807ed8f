"""Epsilon of a number of releases, and the noise multiplier that reaches an epsilon.

Calibrations are cached, because each takes seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import get_args

from dpbench import paths
from dpbench.arguments import finite_number, known_name, whole_number
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, sha256_text, write_cache
from dpbench.privacy.accountants import ACCOUNTANTS, Accountant, NoiseLaw, Relation, Release, Unsupported, by_library, versions

__all__ = ["Accountant", "NoiseLaw", "Relation", "Release", "Unsupported", "calibrate", "epsilon", "versions"]

TOLERANCE = 0.01
"""A calibrated epsilon is in [(1 - TOLERANCE) x target, target]."""

_INTERVAL = 1e-4  # grid step of the privacy loss; rounding is pessimistic, so a coarser grid only overstates epsilon
_FINE = 0.3  # below this noise multiplier privacy losses grow as 1 / noise_multiplier^2, and the grid step with them
_COARSER = 16  # factor on the grid step for most questions of a calibration
_SMALL = 0.01  # a smaller epsilon is computed again on finer grids, until it is a hundred grid steps
_FINEST = 1e-9

SMALLEST_DELTA = 1e-14
"""The least delta that PLD can answer for: it counts tails of up to 1e-15 a composition as infinite privacy loss."""

LEAST_NOISE, MOST_NOISE = 1e-3, 1e6
"""The range of noise multipliers that PLD is asked about. Below it, one release of the full dataset costs more than 500,000."""

_REACHED = 0.05  # an epsilon that RDP's highest order, 1024, reaches at every delta that PLD can answer for
_TRIES = 60  # an interval halved this often has ends that are neighbours in double precision

Within = Callable[[float, float], bool]
"""A function of (noise multiplier, limit) that returns whether epsilon is at most the limit."""


def epsilon(
    releases: Sequence[Release],
    *,
    delta: float,
    relation: Relation = "add_or_remove",
    accountant: Accountant = "pld",
    noise: NoiseLaw = "gaussian",
    coarser: int = 1,
) -> float:
    """Return epsilon of Poisson-sampled releases of one stage, or of several on the same examples.

    That of several is less than the sum of the stages' values. Stages without a step cost nothing.

    Args:
        releases: One entry for each stage, with independent draws.
        relation: `add_or_remove` or `replace_one`. Only the accountant uses it.
        accountant: `pld` (the one that is reported) or `rdp`.
        noise: `gaussian` or `laplace`, in all stages.
        coarser: Factor on the step of PLD's grid. The value takes less time and is larger, by at most that step for each
            release.

    Guarantee: finite, and never below the true epsilon of these releases, up to rounding in double precision.

    Raises:
        Unsupported: RDP of dp-accounting refuses Poisson sampling with replace-one, or of Laplace noise.
        DpbenchError: there is no stage, an unknown name, a number out of range, or a delta or noise multiplier that PLD cannot
            carry.
    """
    if not releases:
        raise DpbenchError("no epsilon for no stage at all", "give the releases of one stage or more")
    known_name(relation, "neighbouring relation", get_args(Relation))
    known_name(accountant, "accountant", ACCOUNTANTS)
    known_name(noise, "noise", get_args(NoiseLaw))
    delta = _delta(delta, accountant)
    stages = tuple(stage for stage in releases if stage.steps)
    for stage in stages if accountant == "pld" else ():
        if not LEAST_NOISE <= stage.noise_multiplier <= MOST_NOISE:
            raise DpbenchError(
                f"no epsilon for noise_multiplier {stage.noise_multiplier:g}: PLD answers from {LEAST_NOISE:g} to {MOST_NOISE:g}",
                "less protects nothing and more leaves nothing of a gradient",
            )
    return _spent(stages, delta, relation, accountant, coarser, noise) if stages else 0.0


def _delta(delta: float, accountant: str = "pld") -> float:
    """Return `delta` after checking that it is in (0, 1) and, for PLD, large enough for its arithmetic.

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
    """Return epsilon of all releases by one accountant, on the coarsest grid that any of them may have for PLD.

    A value that is small against the grid is computed again on finer grids, unless the caller asked for a coarser one.
    """
    if accountant == "rdp":
        spent = by_library(releases, delta, relation, accountant, noise, 0.0)
        if not math.isfinite(spent):
            raise Unsupported(f"rdp has no finite epsilon for {releases}", "read the PLD value")
        return spent
    interval = coarser * max(_interval(release.noise_multiplier) for release in releases)
    spent = by_library(releases, delta, relation, accountant, noise, interval)
    while coarser == 1 and 0 < spent < min(_SMALL, 100 * interval) and interval > _FINEST:
        interval /= 10
        spent = min(spent, by_library(releases, delta, relation, accountant, noise, interval))
    if not math.isfinite(spent):
        raise DpbenchError(
            f"PLD has no finite epsilon at delta {delta:g}: that is within the weight of its rounding errors",
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
    spent: tuple[Release, ...] = (),
) -> float:
    """Return the noise multiplier of a stage with which PLD's epsilon of all is at most `target` and within 1 % of it.

    Args:
        spent: The stages before it, on the same examples and with the same law of noise.

    Raises:
        DpbenchError: an argument is out of range, the stages before have spent the target, or no noise multiplier from 1e-3 to
            1e6 has such an epsilon. The message names the setting.
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
    if spent:
        key["spent"] = [list(astuple(release)) for release in spent]
    path = paths.cache() / "calibrations" / f"{sha256_text(canonical_json(key))[:16]}.json"
    if (cached := _cached(path, key)) is not None:
        return cached
    noise_multiplier = _search(target, sample_rate, steps, delta, relation, noise, spent)
    write_cache(path, json.dumps({"key": key, "noise_multiplier": noise_multiplier}) + "\n")
    return noise_multiplier


def _cached(path: Path, key: dict[str, object]) -> float | None:
    try:
        stored = json.loads(path.read_text())
        return float(finite_number(stored["noise_multiplier"], "noise_multiplier", above=0)) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, DpbenchError):
        return None  # absent or damaged: calibrate again


def _interval(noise_multiplier: float) -> float:
    return _INTERVAL * max(1.0, (_FINE / noise_multiplier) ** 2)


def _search(
    target: float,
    sample_rate: float,
    steps: int,
    delta: float,
    relation: Relation,
    noise: NoiseLaw,
    spent: tuple[Release, ...] = (),
) -> float:
    """Search by bisection, as `calibrate` describes."""

    def within(noise_multiplier: float, limit: float) -> bool:
        """Return whether PLD's epsilon is at most `limit`, from a coarse grid where that is conclusive, else from the fine one.

        Privacy losses are rounded up to the grid, each by less than its step, so the coarse value is never below the fine one
        and at most `steps` grid steps above it.
        """
        stages = (*spent, Release(noise_multiplier, sample_rate, steps))
        coarse = epsilon(stages, delta=delta, relation=relation, noise=noise, coarser=_COARSER)
        grid_step = _COARSER * max(_interval(stage.noise_multiplier) for stage in stages)
        if coarse <= limit or coarse - sum(stage.steps for stage in stages) * grid_step > limit:
            return coarse <= limit
        return epsilon(stages, delta=delta, relation=relation, noise=noise) <= limit

    if spent:
        # The coarse value is at most a little too large, and cheap.
        before = epsilon(spent, delta=delta, relation=relation, noise=noise, coarser=_COARSER)
        if before >= target and (before := epsilon(spent, delta=delta, relation=relation, noise=noise)) >= target:
            raise DpbenchError(
                f"the stages before have spent epsilon {before:.4g}, which leaves nothing of {target:g}",
                "give them a smaller share of the budget",
            )
        setting = f"after {before:.4g}"
        least = calibrate(target, sample_rate=sample_rate, steps=steps, delta=delta, relation=relation, noise=noise)
        low, high = _bracket_after(within, least, target, before)
    else:
        setting = f"at sample_rate {sample_rate:g}, {steps} steps, delta {delta:g}, {relation}"
        start = _start(target, sample_rate, steps, delta) * (2 if relation == "replace_one" else 1)
        low, high = _bracket(within, start, target, setting)
    return _halved(within, low, high, target, setting)


def _bracket(within: Within, start: float, target: float, setting: str) -> tuple[float, float]:
    """Return (low, high) around the answer, from a start near it: far below it the grids take minutes and gigabytes."""
    high = start
    for attempt in range(_TRIES):
        if within(high, target):
            break
        if high >= MOST_NOISE:
            raise DpbenchError(
                f"epsilon {target:g} is out of reach {setting}: a noise multiplier of {MOST_NOISE:g} spends more",
                "take fewer steps, smaller batches, a larger delta, or a larger epsilon",
            )
        high = min(high * (1.2 if attempt < 10 else 2.0), MOST_NOISE)
    low = max(high * 0.8, LEAST_NOISE)
    while within(low, target):
        if low <= LEAST_NOISE:
            raise DpbenchError(
                f"epsilon {target:g} {setting} is spent by no noise multiplier from {LEAST_NOISE:g} on: less protects nothing",
                "take a smaller epsilon",
            )
        low, high = max(low * 0.8, LEAST_NOISE), low
    return low, high


def _bracket_after(within: Within, least: float, target: float, before: float) -> tuple[float, float]:
    """Return (low, high) around the answer of a stage that would need the noise multiplier `least` by itself."""
    low, high = least, least * 1.2
    while not within(high, target):
        low, high = high, high * 1.4
        if high > MOST_NOISE:
            raise DpbenchError(
                f"epsilon {target:g} is out of reach after {before:.4g}: a noise multiplier of {low:g} spends more",
                "give the stages before a smaller share of the budget",
            )
    return low, high


def _halved(within: Within, low: float, high: float, target: float, setting: str) -> float:
    """Return a noise multiplier in (low, high] whose epsilon is within `TOLERANCE` of the target, which `high` meets.

    Raises:
        DpbenchError: epsilon jumps over the target, as it does where delta alone covers it.
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
    """Return a noise multiplier at which RDP meets the target with Gaussian noise; also a start for Laplace noise.

    RDP is cheap and never below PLD. Its orders are limited, so it reaches no very small epsilon; the start is then where its
    epsilon is `_REACHED`, where PLD's grids are small.
    """

    def spent(noise_multiplier: float) -> float:
        return epsilon((Release(noise_multiplier, sample_rate, steps),), delta=delta, accountant="rdp")

    noise_multiplier = 1.0
    while noise_multiplier < MOST_NOISE and spent(noise_multiplier) > target:
        noise_multiplier *= 2
    if noise_multiplier >= MOST_NOISE:
        noise_multiplier = 1.0
        while noise_multiplier < MOST_NOISE and spent(noise_multiplier) > _REACHED:
            noise_multiplier *= 2
        return min(noise_multiplier, MOST_NOISE)
    while noise_multiplier > LEAST_NOISE * 1.2 and spent(noise_multiplier / 1.2) <= target:
        noise_multiplier /= 1.2
    return noise_multiplier

"""PLD and RDP from dp-accounting behind one facade; calibrations are cached, as each costs seconds."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import astuple, dataclass
from functools import cache
from importlib.metadata import version

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, sha256_text, write_cache

ACCOUNTANTS = ("pld", "rdp")
TOLERANCE = 0.01
"""A calibrated epsilon lies in [(1 - TOLERANCE) x target, target]."""

_INTERVAL = 1e-4  # of the privacy loss; pessimistic rounding, so a coarser grid only over-states epsilon
_FINE = 0.3  # noise multipliers below it have privacy losses of 1 / noise_multiplier^2: the grid grows with them
_COARSER = 16  # grid by which most of a calibration's questions are answered


class Unsupported(DpbenchError):
    """The accountant has no answer for this relation."""


def versions() -> dict[str, str]:
    """Accountant -> library and version."""
    return {name: f"dp-accounting {version('dp-accounting')}" for name in ACCOUNTANTS}


@cache
def epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    relation: str = "add_or_remove",
    accountant: str = "pld",
    noise: str = "gaussian",
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

    Raises:
        Unsupported: RDP of dp-accounting refuses Poisson sampling with replace-one, or of Laplace noise.
        DpbenchError: an argument out of range.
    """
    if noise_multiplier <= 0 or not 0 < sample_rate <= 1 or steps < 0 or not 0 < delta < 1:
        raise DpbenchError(
            f"no epsilon for noise_multiplier {noise_multiplier:g}, sample_rate {sample_rate:g}, steps {steps}, delta {delta:g}",
            "noise_multiplier > 0, 0 < sample_rate <= 1, steps >= 0, 0 < delta < 1",
        )
    if steps == 0:
        return 0.0
    return _spent((Release(noise_multiplier, sample_rate, steps),), delta, relation, accountant, coarser, noise)


def _spent(
    releases: tuple[Release, ...], delta: float, relation: str, accountant: str, coarser: int, noise: str = "gaussian"
) -> float:
    """Epsilon of all releases by one accountant; PLD's grid is the coarsest that any of them may have."""
    import dp_accounting
    from dp_accounting import pld, rdp

    relations = {
        "add_or_remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": dp_accounting.NeighboringRelation.REPLACE_ONE,
    }
    if relation not in relations:
        raise DpbenchError(f"unknown neighbouring relation {relation!r}", f"one of {', '.join(relations)}")
    if accountant == "pld":
        interval = coarser * max(_interval(one.noise_multiplier) for one in releases)
        made = pld.PLDAccountant(relations[relation], value_discretization_interval=interval)
    elif accountant == "rdp":
        logging.getLogger("absl").setLevel(logging.ERROR)  # it warns for every order it leaves out, which is its business
        made = rdp.RdpAccountant(neighboring_relation=relations[relation])
    else:
        raise DpbenchError(f"unknown accountant {accountant!r}", f"one of {', '.join(ACCOUNTANTS)}")
    kinds = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}
    if noise not in kinds:
        raise DpbenchError(f"unknown noise {noise!r}", f"one of {', '.join(kinds)}")
    for one in releases:
        event: dp_accounting.DpEvent = kinds[noise](one.noise_multiplier)
        if one.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(one.sample_rate, event)
        try:
            made.compose(event, one.steps)
        except dp_accounting.UnsupportedEventError as error:
            of = (
                f"{relation} with Poisson sampling"
                if noise == "gaussian"
                else f"{relation} with Poisson sampling and {noise} noise"
            )
            raise Unsupported(f"{accountant} has no epsilon for {of}", "read the PLD value") from error
    return float(made.get_epsilon(delta))


def calibrate(
    target: float,
    *,
    sample_rate: float,
    steps: int,
    delta: float,
    relation: str = "add_or_remove",
    noise: str = "gaussian",
) -> float:
    """The noise multiplier whose PLD epsilon is at most `target` and within 1 % of it.

    Raises:
        DpbenchError: the target is not above 0, or no noise multiplier up to 1e4 reaches it.
    """
    if not (target > 0 and math.isfinite(target)):
        raise DpbenchError(f"target epsilon {target} is not a positive number", "give one above 0")
    key = {
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
        return float(stored["noise_multiplier"]) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: calibrate again


def _interval(noise_multiplier: float) -> float:
    return _INTERVAL * max(1.0, (_FINE / noise_multiplier) ** 2)


def _search(target: float, sample_rate: float, steps: int, delta: float, relation: str, noise: str) -> float:
    """Bisection, started near the answer: far below it the accountant's grids take minutes and gigabytes."""

    def within(noise_multiplier: float, limit: float) -> bool:
        """Whether PLD's epsilon is at most `limit`: by a coarse grid, where that says it for certain, else by the fine one.

        Privacy losses are rounded up to the grid, each by less than its step, so the coarse value is never below the fine one
        and at most `steps` steps above it.
        """
        values = {
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
    while not within(high, target):
        high *= 1.2
    low = high * 0.8
    while within(low, target):
        low, high = low * 0.8, low
        if high < 0.05:
            return high
    while within(high, target * (1 - TOLERANCE)):
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle, target) else (middle, high)
    return high


def _start(target: float, sample_rate: float, steps: int, delta: float) -> float:
    """A noise multiplier that RDP, cheap and never below PLD, says is enough of Gaussian noise: a start for Laplace's, too."""

    def spent(noise_multiplier: float) -> float:
        values = {"noise_multiplier": noise_multiplier, "sample_rate": sample_rate, "steps": steps, "delta": delta}
        return epsilon(**values, accountant="rdp")

    enough = 1.0
    while spent(enough) > target:
        enough *= 2
        if enough > 1e4:
            raise DpbenchError(
                f"epsilon {target:g} is out of reach at sample_rate {sample_rate:g}, {steps} steps, delta {delta:g}",
                "take fewer steps, smaller batches, or a larger epsilon",
            )
    while enough > 0.1 and spent(enough / 1.2) <= target:
        enough /= 1.2
    return enough


@dataclass(frozen=True)
class Release:
    """Gaussian releases of one stage: noise std / add-or-remove sensitivity, each example's sampling rate, how many."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@cache
def composed(
    releases: tuple[Release, ...], *, delta: float, relation: str = "add_or_remove", accountant: str = "pld", coarser: int = 1
) -> float:
    """Epsilon of several stages on the same examples, by one accountant: less than the sum of theirs.

    Args:
        releases: of each stage, with noise and draws of its own; the rest as in `epsilon`.

    Raises:
        Unsupported, DpbenchError: as `epsilon`.
    """
    if len(releases) > 1:
        for one in releases:  # refuses what has no epsilon by itself
            if one.noise_multiplier <= 0 or not 0 < one.sample_rate <= 1 or one.steps < 1:
                raise DpbenchError(f"no epsilon for a stage of {one}", "noise_multiplier > 0, 0 < sample_rate <= 1, steps >= 1")
        return _spent(releases, delta, relation, accountant, coarser)
    one = releases[0]
    return epsilon(
        noise_multiplier=one.noise_multiplier,
        sample_rate=one.sample_rate,
        steps=one.steps,
        delta=delta,
        relation=relation,
        accountant=accountant,
        coarser=coarser,
    )


def calibrate_beside(
    target: float,
    spent: tuple[Release, ...],
    *,
    sample_rate: float,
    steps: int,
    delta: float,
    relation: str = "add_or_remove",
) -> float:
    """The noise multiplier of one more stage, so that PLD's epsilon of all is at most `target` and within 1 % of it.

    Args:
        spent: the stages before it, on the same examples.

    Raises:
        DpbenchError: the stages before have spent the target, or no noise multiplier up to 1e4 reaches it.
    """
    alone = {"sample_rate": sample_rate, "steps": steps, "delta": delta, "relation": relation}
    least = calibrate(target, **alone)  # type: ignore[arg-type]
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
        if high > 1e4:
            raise DpbenchError(
                f"epsilon {target:g} is out of reach after {before:.4g}", "give the stages before a smaller share of the budget"
            )
    while within(high, target * (1 - TOLERANCE)):
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle, target) else (middle, high)
    write_cache(path, json.dumps({"key": key, "noise_multiplier": high}) + "\n")
    return high

"""The PLD and RDP accountants of dp-accounting behind one call. No other module imports that library."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, get_args

from dpbench.arguments import finite_number, whole_number
from dpbench.errors import DpbenchError

Relation = Literal["add_or_remove", "replace_one"]
NoiseLaw = Literal["gaussian", "laplace"]
Accountant = Literal["pld", "rdp"]

ACCOUNTANTS: tuple[Accountant, ...] = get_args(Accountant)


class Unsupported(DpbenchError):
    """The accountant has no answer for this relation."""


def versions() -> dict[str, str]:
    """Return the library and version of each accountant."""
    return {name: f"dp-accounting {version('dp-accounting')}" for name in ACCOUNTANTS}


@dataclass(frozen=True)
class Release:
    """The releases of one stage of training.

    noise_multiplier: The noise std over the add-or-remove sensitivity, whatever the relation. For Laplace noise it is the scale b
    (the std is sqrt(2) b) over the L1 sensitivity. sample_rate: The probability with which each example is in a step; 1 means
    every example in every step. steps: The number of releases.

    Raises:
        DpbenchError: a number out of range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        hint = "noise_multiplier > 0, 0 < sample_rate <= 1, steps >= 0"
        multiplier = finite_number(self.noise_multiplier, "noise_multiplier", above=0, hint=hint)
        rate = finite_number(self.sample_rate, "sample_rate", above=0, hint=hint)
        if rate > 1:
            raise DpbenchError(f"sample_rate {rate} is above 1", hint)
        steps = whole_number(self.steps, "steps", least=0, hint=hint)
        for name, value in (("noise_multiplier", multiplier), ("sample_rate", rate), ("steps", steps)):
            object.__setattr__(self, name, value)


def by_library(releases: tuple[Release, ...], delta: float, relation: str, accountant: str, noise: str, interval: float) -> float:
    """Return epsilon as dp-accounting computes it. `interval` is the step of PLD's grid."""
    import dp_accounting
    from dp_accounting import pld, rdp

    relations = {
        "add_or_remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace_one": dp_accounting.NeighboringRelation.REPLACE_ONE,
    }
    library: Any
    if accountant == "pld":
        library = pld.PLDAccountant(relations[relation], value_discretization_interval=interval)
    else:
        logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of every order that it skips, which concerns no user
        library = rdp.RdpAccountant(neighboring_relation=relations[relation])
    kinds = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}
    for release in releases:
        event: dp_accounting.DpEvent = kinds[noise](release.noise_multiplier)
        if release.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(release.sample_rate, event)
        try:
            library.compose(event, release.steps)
        except dp_accounting.UnsupportedEventError as error:
            case = f"{relation} with Poisson sampling" + ("" if noise == "gaussian" else f" and {noise} noise")
            raise Unsupported(f"{accountant} has no epsilon for {case}", "read the PLD value") from error
    return float(library.get_epsilon(delta))

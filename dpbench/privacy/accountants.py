"""PLD and RDP of dp-accounting behind one call: the one place that knows that library."""

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
    """Accountant -> library and version."""
    return {name: f"dp-accounting {version('dp-accounting')}" for name in ACCOUNTANTS}


@dataclass(frozen=True)
class Release:
    """Releases of one stage: noise std / add-or-remove sensitivity, each example's sampling rate, how many.

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
    """Epsilon by dp-accounting; `interval` of PLD's grid."""
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
        logging.getLogger("absl").setLevel(logging.ERROR)  # it warns for every order it leaves out, which is its business
        library = rdp.RdpAccountant(neighboring_relation=relations[relation])
    kinds = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}
    for one in releases:
        event: dp_accounting.DpEvent = kinds[noise](one.noise_multiplier)
        if one.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(one.sample_rate, event)
        try:
            library.compose(event, one.steps)
        except dp_accounting.UnsupportedEventError as error:
            of = (
                f"{relation} with Poisson sampling"
                if noise == "gaussian"
                else f"{relation} with Poisson sampling and {noise} noise"
            )
            raise Unsupported(f"{accountant} has no epsilon for {of}", "read the PLD value") from error
    return float(library.get_epsilon(delta))

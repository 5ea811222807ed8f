"""The joint accounting of several mechanisms on the same examples, and the split of one mechanism into phases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dpbench.arguments import finite_number, whole_number
from dpbench.errors import DpbenchError
from dpbench.privacy import accounting
from dpbench.privacy.accounting import Accountant, Relation, Release
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.mechanism import Mechanism

_SEED_BITS = 52  # whoever reads a record may hold numbers as doubles


def stage_seed(seed: int, stage: str) -> int:
    """Return the seed of a stage's draws and noise. It differs between stages and is the same for all methods of a seed."""
    digest = hashlib.sha256(f"dpbench stage {stage!r} of seed {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def release_of(plan: Mechanism) -> Release:
    """Return what the accountant needs to know of one private mechanism.

    Raises:
        DpbenchError: The mechanism has no Gaussian noise.
    """
    if not plan.private or plan.noise_multiplier == 0 or plan.noise != "gaussian":
        raise DpbenchError("a stage without Gaussian noise has no epsilon to compose", "make every stage of a run private")
    return Release(plan.noise_multiplier, plan.sampling.sample_rate, plan.steps)


def release_in(record: dict[str, Any] | None, relation: Relation | None = None) -> Release:
    """Return what the accountant needs to know of the mechanism in a record.

    Args:
        relation: The relation of the stage that follows.

    Raises:
        DpbenchError: The record's run was not private, or has noise that is not Gaussian, or another relation.
    """
    if record is None or record.get("clipping") is None or not record["noise_multiplier"]:
        raise DpbenchError("the run before this one was not private", "make every stage of a run private")
    if (noise := record.get("noise", "gaussian")) != "gaussian":
        raise DpbenchError(
            f"the run before this one has {noise} noise, which is not composed", "use Gaussian noise in every stage"
        )
    if relation is not None and record["relation"] != relation:
        raise DpbenchError(
            f"the run before this one has the relation {record['relation']}, this one {relation}", "use one for all stages"
        )
    return Release(record["noise_multiplier"], record["sampling"]["sample_rate"], record["steps"])


@dataclass(frozen=True)
class Composition:
    """A run's mechanism together with the stages before it that used the same examples.

    mechanism is that of this run, and spent holds the releases of the stages before. All have one delta and one relation.

    Guarantee: epsilon is that of all releases together, and never above the target.

    Raises:
        DpbenchError: Epsilon would be above the target, or a stage has no Gaussian noise.
    """

    mechanism: Mechanism
    spent: tuple[Release, ...]
    target_epsilon: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mechanism, Mechanism):
            raise DpbenchError(f"a composition's mechanism is a {type(self.mechanism).__name__}", "give a Mechanism")
        if not isinstance(self.spent, tuple) or not all(isinstance(release, Release) for release in self.spent):
            raise DpbenchError("a composition's stages before are no tuple of releases", "give what release_of says of each")
        release_of(self.mechanism)
        if self.target_epsilon is not None:
            finite_number(self.target_epsilon, "target_epsilon", above=0, hint="give one above 0, or none")
        total = self.epsilon()
        if self.target_epsilon is not None and total > self.target_epsilon * (1 + 1e-9):
            raise DpbenchError(
                f"epsilon {total:.4g} of all stages together is above the target {self.target_epsilon:g}",
                "each stage spends a share: calibrate the last with dpbench.privacy.mechanism.calibrated and what was `spent`",
            )

    @property
    def private(self) -> bool:
        return True

    @property
    def delta(self) -> float:
        return self.mechanism.delta

    @property
    def relation(self) -> Relation:
        return self.mechanism.relation

    @property
    def noise_multiplier(self) -> float:
        """The noise multiplier of the last stage."""
        return self.mechanism.noise_multiplier

    @property
    def reasons(self) -> list[str]:
        """The reasons for which epsilon is only nominal; empty where it is valid."""
        return self.mechanism.reasons

    def epsilon(self, accountant: Accountant = "pld") -> float:
        """Return epsilon of all stages together.

        Raises:
            accounting.Unsupported: The accountant refuses this relation.
        """
        parts = (*self.spent, release_of(self.mechanism))
        return accounting.composed(parts, delta=self.delta, relation=self.relation, accountant=accountant)

    def describe(self) -> dict[str, Any]:
        """Return the entry for the record: the last stage's mechanism and the releases of the stages before."""
        stages_before = [asdict(release) for release in self.spent]
        return {**self.mechanism.describe(), "target_epsilon": self.target_epsilon, "stages_before": stages_before}


def phases(plan: Mechanism, steps: Sequence[int]) -> list[Mechanism]:
    """Cut a mechanism into consecutive phases, for a model whose tensors change between them.

    Guarantee: together the phases release what `plan` does, each with independent draws and noise. Nothing is spent twice.

    Raises:
        DpbenchError: The phases' steps do not sum to those of the plan, or adaptive thresholds would have to pass from one phase
            to the next.
    """
    if not steps or any(whole_number(count, "phase", least=0) < 1 for count in steps) or sum(steps) != plan.steps:
        raise DpbenchError(f"phases of {list(steps)} steps for a mechanism of {plan.steps}", "they must sum to it")
    if plan.clipping is not None and isinstance(plan.clipping.adaptive, Adaptive):
        raise DpbenchError("adaptive thresholds do not go over from one phase to the next", "use fixed ones")
    return [
        replace(plan, steps=count, seed=plan.seed if k == 0 else stage_seed(plan.seed, f"phase {k}"), target_epsilon=None)
        for k, count in enumerate(steps)
    ]

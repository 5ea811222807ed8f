"""Several stages on the same examples: what each has spent, their seeds, and the split of one mechanism into phases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dpbench.arguments import whole_number
from dpbench.errors import DpbenchError
from dpbench.privacy.accounting import Relation, Release
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

"""What jobs that compute features of a frozen model share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpbench.execution.contract import Context, Outcome, metric

if TYPE_CHECKING:
    from torch import Tensor

FILE = "features.safetensors"
"""File that such a run leaves."""


def outcome_of(context: Context, tensors: dict[str, Tensor], facts: dict[str, Any], seconds: float, device: str) -> Outcome:
    """Write `FILE`, and return how many rows a second the features took; `facts` have the `rows` of each split."""
    from safetensors.torch import save_file

    save_file(tensors, context.out / FILE)
    count = sum(facts["rows"].values())
    context.steps.write(step=0, rows=count, seconds=seconds)
    return Outcome([metric("rows_per_second", count / seconds, "rows/s")], facts=facts, artefacts=[FILE], device=device)

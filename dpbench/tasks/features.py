"""What jobs that compute features of a frozen model share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpbench.execution.contract import Context, Outcome, metric

FILE = "features.safetensors"
"""File that such a run leaves."""


def extracted(extract: Callable[[Any, Context], tuple[dict[str, Any], float]], settings: Any, context: Context) -> Outcome:
    """Write `FILE` by `extract`, and measure how many rows a second it takes.

    Args:
        extract: returns (facts with `rows`, seconds); settings: with a device.

    Raises:
        DpbenchError: No such device; what `extract` raises.
    """
    from dpbench.execution.environment import require_device

    require_device(settings.device)
    facts, seconds = extract(settings, context)
    count = sum(facts["rows"].values())
    context.steps.write(step=0, rows=count, seconds=seconds)
    return Outcome([metric("rows_per_second", count / seconds, "rows/s")], facts=facts, artefacts=[FILE], device=settings.device)

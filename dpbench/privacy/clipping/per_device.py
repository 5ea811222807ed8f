"""Per-device scope: one group per device that holds a stretch of the model (He et al., ICLR 2023, for pipelines).

In a pipeline every stage is a device, and its trained layers are one group: no norm leaves a stage. On one process the devices
are virtual.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from dpbench.errors import DpbenchError

PLUGIN = {
    "kind": "scope",
    "name": "per_device",
    "version": 1,
    "summary": "one norm per device that holds a stretch of layers",
    "needs": ["sizes", "devices"],
    "stages": True,
}


def groups(layers: list[str], sizes: Sequence[int], devices: int | None) -> list[list[str]]:
    """Return the groups of layer names: `devices` runs of about equal parameter count, none of them empty.

    Args:
        sizes: The number of trained parameters of each layer.

    Raises:
        DpbenchError: There is no number of devices, or it is not between 1 and the number of layers.
    """
    if devices is None:
        raise DpbenchError("scope per_device on one process needs a number of devices", "give clipping devices: 4, say")
    if not 1 <= devices <= len(layers):
        raise DpbenchError(f"{devices} devices for {len(layers)} layers", "use at least 1, and no more than layers")
    until = list(accumulate(sizes, initial=0))
    ends = [0]
    for number in range(1, devices):
        share = until[-1] * number / devices
        possible = range(ends[-1] + 1, len(layers) - (devices - number) + 1)
        ends.append(min(possible, key=lambda end: abs(until[end] - share)))
    return [layers[first:last] for first, last in pairwise([*ends, len(layers)])]

"""The logical batches of a training loop, watched: what is drawn is counted once, what is planned is released."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dpbench.errors import DpbenchError
from dpbench.privacy.mechanism import Mechanism
from dpbench.privacy.sampling import batches

_REPORT = "report this: it is a fault of the loop, or of a task's `physical` or `batch`"


class Draws:
    """The logical batches of a mechanism, for a loop that tells of each how many examples it has counted.

    Guarantee: a loop that counts a physical batch twice or leaves one out, releases a step twice or not at all, or ends too
    early is stopped, so that no record states an epsilon of examples other than those that were drawn.
    """

    def __init__(self, plan: Mechanism) -> None:
        self.plan = plan
        self.steps = 0
        self._drawn: int | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the indices of each logical step's examples; under Poisson sampling there may be none.

        Raises:
            DpbenchError: the step before has been drawn and not released.
        """
        for drawn in batches(self.plan):
            self._require_released()
            self._drawn = len(drawn)
            yield drawn

    def counted(self, examples: int) -> None:
        """Call once a step, before the weights move where that can be: so many examples are in what is released, over all
        processes and without padding.

        Raises:
            DpbenchError: nothing was drawn since the last call, or another number of examples.
        """
        if self._drawn is None:
            raise DpbenchError(f"step {self.steps + 1} is released without a draw", _REPORT)
        if examples != self._drawn:
            what = f"step {self.steps + 1}: {examples} examples were counted, where {self._drawn} were drawn"
            raise DpbenchError(what, _REPORT)
        self._drawn = None
        self.steps += 1

    def finish(self) -> None:
        """Call after the loop.

        Raises:
            DpbenchError: fewer steps were released than the mechanism has, or more.
        """
        self._require_released()
        if self.steps != self.plan.steps:
            raise DpbenchError(f"{self.steps} of the {self.plan.steps} steps that are accounted for were released", _REPORT)

    def _require_released(self) -> None:
        if self._drawn is not None:
            raise DpbenchError(f"step {self.steps + 1}: {self._drawn} examples were drawn and never released", _REPORT)

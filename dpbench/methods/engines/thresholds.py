"""The adaptive thresholds of an attached engine: the counts of the current step, and all releases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dpbench.arguments import finite_number
from dpbench.errors import DpbenchError
from dpbench.privacy.mechanism import Mechanism

Release = Callable[[list[float], float], list[float]]
"""A function of (centred counts of this process, noise std) that returns those of all processes with one draw of noise."""


class Thresholds:
    """Counts the examples within each group's bound, releases the counts with noise once a step, and moves the bounds.

    Guarantee: the counts of all groups together move by sqrt(K) / 2 when one example is added or removed, whatever its norms.
    With the mechanism's split a step costs as much as sums of `noise_multiplier` alone (`dpbench.privacy.clipping.adaptive`).

    labels: The groups' labels. trajectory: The bounds [steps + 1][K], beginning with the first step. fractions: The released
    fractions [steps][K] of examples within the bound. Both are computed from releases alone, so they may be published. Raw counts
    are not kept.
    """

    def __init__(self, mechanism: Mechanism, labels: Sequence[str], local_groups: Sequence[int], bounds: Sequence[float]) -> None:
        """Start from the bounds of the first step.

        Args:
            local_groups: The numbers of the groups that this process holds: all, except in a stage of a pipeline.
        """
        assert mechanism.clipping is not None
        assert mechanism.clipping.adaptive is not None
        self.adaptive, self._total_bound = mechanism.clipping.adaptive, mechanism.clipping.bound
        self._expected = mechanism.sampling.expected_batch_size
        self.std = self.adaptive.count_std(mechanism.noise_multiplier, len(labels))
        self.labels, self._local_groups = list(labels), list(local_groups)
        self.trajectory: list[list[float]] = [list(bounds)]
        self.fractions: list[list[float]] = []
        self._forget()

    def _forget(self) -> None:
        self._examples = 0
        self._within = dict.fromkeys(self._local_groups, 0)
        self._counts: dict[tuple[int, ...], Tensor] = {}  # by groups, left on the device until the step ends

    def note(self, within: Tensor, groups: Sequence[int] | None = None) -> None:
        """Note the examples of a physical batch, without padding and without waiting for the device.

        Args:
            within: [B, K'] bool: whether the norm in each of `groups` (None: all that this process holds) is at most the bound; a
                non-finite one is not. In a group that is not named no example has a gradient, so its norm is 0.
        """
        key = tuple(self._local_groups if groups is None else groups)
        count = within.sum(0)
        self._counts[key] = self._counts[key] + count if key in self._counts else count
        self._examples += len(within)
        for group in set(self._local_groups).difference(key):
            self._within[group] += len(within)

    def centred(self) -> list[float]:
        """Return sum_i (1[norm_i <= C_k] - 1/2), [K], of this process; 0 for groups not held. This waits for the device."""
        within = dict(self._within)
        for groups, count in self._counts.items():
            for group, number in zip(groups, count.tolist(), strict=True):
                within[group] += int(number)
        return [within[k] - self._examples / 2 if k in within else 0.0 for k in range(len(self.labels))]

    def move(self, release: Release) -> list[float]:
        """Return the next step's bounds, from this step's counts with their noise; also after a step without an example."""
        noisy = release(self.centred(), self.std)
        self._forget()
        self.fractions.append([0.5 + value / self._expected for value in noisy])
        self.trajectory.append(self.adaptive.moved(self.trajectory[-1], self.fractions[-1], self._total_bound))
        return list(self.trajectory[-1])

    def state_dict(self) -> dict[str, Any]:
        """Return all releases, for `torch.save`."""
        return {
            "labels": list(self.labels),
            "trajectory": [list(bounds) for bounds in self.trajectory],
            "fractions": [list(fractions) for fractions in self.fractions],
        }

    def check_state(self, state: object, steps: int) -> None:
        """Check that `state` is one of these groups after `steps` steps.

        Raises:
            DpbenchError: It is not. The message names the difference.
        """
        if not isinstance(state, dict) or not {"labels", "trajectory", "fractions"} <= set(state):
            raise DpbenchError("the state has no adaptive thresholds", "load what state_dict gave")
        if state["labels"] != self.labels:
            raise DpbenchError(f"the state's groups are {state['labels']}, not {self.labels}", "build the model as it was")
        for name, rows in (("trajectory", steps + 1), ("fractions", steps)):
            values = state[name]
            if len(values) != rows or any(len(row) != len(self.labels) for row in values):
                raise DpbenchError(f"the state's {name} is not [{rows}, {len(self.labels)}]", "load what state_dict gave")
            for value in (value for row in values for value in row):
                finite_number(value, f"the state's {name}", above=0 if name == "trajectory" else -math.inf)
        if list(state["trajectory"][0]) != self.trajectory[0]:
            raise DpbenchError(f"the state's first bounds are {state['trajectory'][0]}, not {self.trajectory[0]}", "")

    def load_state_dict(self, state: dict[str, Any]) -> list[float]:
        """Continue from the releases in a state that was checked, and return the next step's bounds."""
        self.trajectory = [list(bounds) for bounds in state["trajectory"]]
        self.fractions = [list(fractions) for fractions in state["fractions"]]
        return list(self.trajectory[-1])

    @property
    def last(self) -> dict[str, list[float]]:
        """The log entries of the last step: the bounds it clipped with and the fractions it released."""
        return {"thresholds": self.trajectory[-2], "released_fractions": self.fractions[-1]}

    @property
    def clipped(self) -> list[float]:
        """The shares [K] of examples beyond each group's bound, over the later half of the steps: as released, so with noise.

        At least one step is required.
        """
        later = self.fractions[len(self.fractions) // 2 :]
        return [1 - sum(step[k] for step in later) / len(later) for k in range(len(self.labels))]

    @property
    def facts(self) -> dict[str, Any]:
        """The entries of a record, by group: the bounds of the first step and after the last, and the clipped share."""
        first_and_last = zip(self.labels, self.trajectory[0], self.trajectory[-1], strict=True)
        return {
            "thresholds": {label: [first, last] for label, first, last in first_and_last},
            "clipped_fractions_released": dict(zip(self.labels, self.clipped, strict=True)),
        }

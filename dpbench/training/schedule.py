"""Learning rates over a run's steps, as a scheduler of torch's."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Rate = Callable[[float, int], float]
"""(a parameter group's largest learning rate, steps done) -> its learning rate for the next step."""


class Schedule(LRScheduler):
    """Sets every group's learning rate to `rate` of its own largest one: a closed form, the same wherever a run is resumed."""

    def __init__(self, optimizer: Optimizer, rate: Rate) -> None:
        self._rate = rate
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [self._rate(base, self.last_epoch) for base in self.base_lrs]

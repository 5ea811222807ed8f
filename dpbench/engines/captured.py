"""What engines share that get every layer's input and output gradient from hooks: see `capture`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dpbench.engines.base import Handle, Losses
from dpbench.engines.capture import Capture, Pass


class Captured(Handle):
    """A handle with hooks on all its layers. An engine of one backward pass gives `backward_of`."""

    adapts = True

    def _prepare_clipping(self) -> None:
        super()._prepare_clipping()
        assert self.layout is not None
        self._capture = Capture(self.layout)

    def _accumulate(self, losses: Losses, batch: Any) -> Tensor:
        one, values = self._capture.losses(losses, self.model, batch)
        self.backward_of(one, values.sum())
        return values.detach()

    def forward_of(self, call: Callable[[], Tensor]) -> tuple[Pass, Tensor]:
        return self._capture.forward(call)

    def detach(self) -> None:
        self._capture.remove()
        super().detach()

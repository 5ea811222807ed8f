"""Plain training: no clipping, no noise. The floor every other engine is measured against."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dpbench.engines.base import Handle, Losses, check_losses
from dpbench.errors import DpbenchError

PLUGIN = {
    "kind": "engine",
    "name": "nonprivate",
    "version": 1,
    "summary": "plain training, no clipping and no noise",
    "private": False,
    "scopes": [],
}


class Engine(Handle):
    """Sums of gradients by autograd; a mechanism with clipping is refused."""

    name = "nonprivate"

    def _prepare_clipping(self) -> None:
        raise DpbenchError("engine 'nonprivate' does not clip", "give a mechanism without clipping, or another engine")

    def _accumulate(self, losses: Losses, batch: Any) -> Tensor:
        values = check_losses(losses(self.model, batch))
        for parameter in self.trainable.values():  # autograd adds to the sum in place
            parameter.grad = self._sums.pop(id(parameter), None)
        values.sum().backward()
        for parameter in self.trainable.values():
            if parameter.grad is not None:
                self._sums[id(parameter)] = parameter.grad
                parameter.grad = None
        return values.detach()

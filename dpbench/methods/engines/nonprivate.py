"""Plain training, without clipping and noise. Its cost is the lower limit that every other engine is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from dpbench.errors import DpbenchError
from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.batches import Batch, Losses, check_losses

PLUGIN = {
    "kind": "engine",
    "name": "nonprivate",
    "version": 1,
    "summary": "plain training, no clipping and no noise",
    "private": False,
    "scopes": [],
    "parallel": ["replicas", "shards", "stages"],
}


class Engine(Handle):
    """The engine `nonprivate`: sums of gradients by autograd. It refuses a mechanism with clipping."""

    def _prepare_clipping(self) -> None:
        raise DpbenchError("engine 'nonprivate' does not clip", "give a mechanism without clipping, or another engine")

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        values = check_losses(losses(self.model, batch))
        with self.adding():
            values.sum().backward()
        return values.detach()

    def forward_of(self, call: Callable[[], Tensor]) -> tuple[None, Tensor]:
        return None, call()

    def backward_of(
        self, open_pass: None, outputs: Tensor, gradients: Tensor | None = None, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        with self.adding():
            outputs.backward(gradients)
        input_gradients = [x.grad for x in inputs]
        for x in inputs:
            x.grad = None
        return input_gradients

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Let autograd add to the running sums in place, inside the block."""
        for parameter in self.trainable.values():
            parameter.grad = self._sums.pop(id(parameter), None)
        yield
        for parameter in self.trainable.values():
            if parameter.grad is not None:
                self._sums[id(parameter)] = parameter.grad
                parameter.grad = None

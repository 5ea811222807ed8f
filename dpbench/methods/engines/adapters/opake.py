"""Opake (JetBrains Research): flat clipping by its `clipped_grad`, built on `torch.func`. The noise is dpbench's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dpbench.errors import DpbenchError
from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.batches import Batch, Losses, batch_size
from dpbench.methods.engines.functional import Parameters, losses_with

PLUGIN = {
    "kind": "engine",
    "name": "opake",
    "version": 1,
    "summary": "Opake, per-example gradients by torch.func",
    "private": True,
    "scopes": ["flat"],
    "package": "opake",
    "get": "pip install opake",
    "functional": True,
    "limits": {
        "functions": "Opake does Abadi clipping",
        "half": "Opake sums clipped gradients in the gradients' dtype",
        "bad_example": "Opake leaves a non-finite example out and does not say so",
    },
}


class Engine(Handle):
    """The peer Opake with its functional clipping in the default form, on the full batch."""

    functions = ("abadi",)
    needs_layers = False

    def _prepare_clipping(self) -> None:
        try:
            import opake.dpsgd.clipping
        except ImportError as error:
            raise DpbenchError("opake is not installed", "pip install opake") from error
        super()._prepare_clipping()
        self._clipped_grad = opake.dpsgd.clipping.clipped_grad

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        if batch_size(batch) == 0:
            return torch.zeros(0)

        def loss(parameters: Parameters, example: Batch) -> Tensor:
            batch_of_one = tree_map(lambda v: v[None] if isinstance(v, Tensor) else v, example)
            return losses_with(self.model, losses, parameters, batch_of_one, by_use=False).squeeze(0)

        function, state = self._clipped_grad(loss, clipping_norm=self.bounds[0], batch_argnums=1, return_aux=True)
        parameters = {name: parameter.detach() for name, parameter in self.trainable.items()}
        result: Any
        result, _ = function(parameters, batch, state=state)
        clipped, auxiliary = result
        for name, gradient in clipped.pytree.items():
            self.sum_of(self.trainable[name]).add_(gradient)
        self.count(auxiliary.grad_norms, self.bounds[0])
        return auxiliary.loss_values.detach()

"""Opacus' default mode: hooks materialise every per-example gradient (`GradSampleHooks`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpbench.methods.engines.adapters.opacus_common import OpacusHandle
from dpbench.methods.engines.batches import Batch, Losses, check_losses

PLUGIN = {
    "kind": "engine",
    "name": "opacus",
    "version": 1,
    "summary": "Opacus, materialised per-example gradients",
    "private": True,
    "scopes": ["flat"],
    "package": "opacus",
    "get": "pip install opacus",
    "limits": {
        "functions": "Opacus does Abadi clipping, with 1e-6 added to the norm",
        "half": "Opacus sums per-example gradients in the gradients' dtype",
        "bad_example": "Opacus multiplies a non-finite gradient by its factor, so that the step is not finite",
    },
}


class Engine(OpacusHandle):
    """The peer Opacus with hooks."""

    def _wrap(self) -> None:
        from opacus.grad_sample.grad_sample_module import GradSampleHooks
        from opacus.optimizers import DPOptimizer

        self._gradients = GradSampleHooks(self.model, batch_first=True, loss_reduction="sum", strict=False)
        self._dp = DPOptimizer(self.optimizer, **self._wrapper_options())

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        values = check_losses(losses(self.model, batch))
        values.sum().backward()
        parameters: list[Any] = list(self.trainable.values())
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters], 1).norm(dim=1)
        self.count(norms.detach(), self.bounds[0])
        self._dp.clip_and_accumulate()
        for parameter in parameters:
            parameter.grad_sample = None
            parameter.grad = None
        return values.detach()

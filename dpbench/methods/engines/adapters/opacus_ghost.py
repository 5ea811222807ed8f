"""Opacus' ghost mode: norms without per-example gradients, two backward passes (`GradSampleHooksFastGradientClipping`)."""

from __future__ import annotations

from torch import Tensor

from dpbench.methods.engines.adapters.opacus_common import OpacusHandle
from dpbench.methods.engines.batches import Batch, Losses, check_losses

PLUGIN = {
    "kind": "engine",
    "name": "opacus_ghost",
    "version": 1,
    "summary": "Opacus, ghost clipping in two backward passes",
    "private": True,
    "scopes": ["flat"],
    "package": "opacus",
    "get": "pip install opacus",
    "limits": {
        "functions": "Opacus does Abadi clipping, with 1e-6 added to the norm",
        "tied": "Opacus' ghost clipping refuses tied and repeated modules",
        "half": "the second pass rounds weighted losses' gradients and their sum to the gradients' dtype",
        "bad_example": "Opacus multiplies a non-finite loss by its factor, so that the step is not finite",
    },
}


class Engine(OpacusHandle):
    """The peer Opacus with ghost clipping. It refuses tied weights."""

    def _wrap(self) -> None:
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
        from opacus.optimizers import DPOptimizerFastGradientClipping

        self._gradients = GradSampleHooksFastGradientClipping(
            self.model, batch_first=True, loss_reduction="sum", strict=False, max_grad_norm=self.clipping.bound
        )
        self._dp = DPOptimizerFastGradientClipping(self.optimizer, **self._wrapper_options())

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        values = check_losses(losses(self.model, batch))
        values.sum().backward(retain_graph=True)
        for parameter in self.trainable.values():
            parameter.grad = None
        factors = self._gradients.get_clipping_coef()
        self.count(self._gradients.per_sample_gradient_norms.detach(), self.bounds[0])
        self._gradients.disable_hooks()
        (values * factors).sum().backward()
        self._gradients.enable_hooks()
        self._dp.accumulate()
        for parameter in self.trainable.values():
            parameter.grad = None
        return values.detach()

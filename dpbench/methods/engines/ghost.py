"""Flat clipping in two backward passes: norms first, then the plain gradient of the reweighted losses.

Ghost clipping of Li et al. (ICLR 2022) and Bu et al. (NeurIPS 2022). The first pass forms no weight gradient, so the
price over plain training is one unit of matrix work and the norms; nothing of the first pass is kept. In half precision the
second pass is weighted layer by layer, not by the losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Use, accumulation_dtype, sq_norms, weighted_factors
from dpbench.methods.engines.batches import Batch, Losses, check_losses, select
from dpbench.methods.engines.capture import Pass
from dpbench.methods.engines.captured import Captured
from dpbench.methods.engines.layers import Cluster, Layer

PLUGIN = {
    "kind": "engine",
    "name": "ghost",
    "version": 3,
    "summary": "flat, two backward passes",
    "private": True,
    "scopes": ["flat"],
    "adaptive": True,
    "kernels": True,
    "parallel": ["replicas"],
}


class Engine(Captured):
    """The engine `ghost`: flat clipping, without memory beyond plain training."""

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        squared: list[Tensor] = []
        half: list[bool] = []

        def ready(_cluster: Cluster, uses: list[tuple[Layer, Use]]) -> None:
            squared.append(sq_norms([(layer.leaf, use) for layer, use in uses]))
            half.extend(use.g.dtype != accumulation_dtype(use.g) for _, use in uses)

        open_pass, values = self._forward(losses, batch)
        open_pass.backward(values.sum(), ready, retain_graph=True)
        norms = torch.stack(squared).sum(0).sqrt()
        factors, finite = weighted_factors(norms, self.factor(0))
        self.count(norms, self.bounds[0])
        seen = values.detach()
        if any(half):
            self._add_again(open_pass, values, factors, finite)
            return seen
        open_pass.close()
        if not finite.all():  # 0 x NaN is NaN, so the other examples are computed again without it
            if not finite.any():
                return seen
            values = check_losses(losses(self.model, select(batch, finite)))
            factors = factors[finite]
            if len(values) != len(factors):
                raise DpbenchError(
                    f"{len(values)} losses of {len(factors)} examples: one that is not finite cannot be taken out of the batch",
                    "give the batch as tensors [B, ...], in a dict, a tuple or a dataclass",
                )
        self._weighted_backward((values * factors.to(values.dtype)).sum())
        return seen

    def _add_again(self, open_pass: Pass, values: Tensor, factors: Tensor, finite: Tensor) -> None:
        """Make a second pass over the same gradients as the first, which are weighted as they are added.

        Autograd would round the weighted losses' gradients differently from those that were measured, and the sum over the batch
        to half precision, whose rounding is larger than the example that was added.
        """

        def ready(_cluster: Cluster, uses: list[tuple[Layer, Use]]) -> None:
            for layer, use in uses:
                layer.leaf.add_finite(use, factors, finite, self.sums_of(layer))

        open_pass.backward(values.sum(), ready)

    def _weighted_backward(self, loss: Tensor) -> None:
        """Add the loss' gradients to the running sums, by autograd itself where the dtypes agree."""
        direct = [p for p in self.trainable.values() if p.dtype == accumulation_dtype(p)]
        for parameter in direct:
            parameter.grad = self._sums.pop(id(parameter), None)
        loss.backward()
        if unseen := [name for name, p in self.trainable.items() if p.grad is not None and id(p) not in self._reached]:
            raise DpbenchError(
                f"{unseen[0]} has a gradient that was not measured: it would be released unclipped", "use the engine 'loop'"
            )
        for parameter in direct:
            if parameter.grad is not None:
                self._sums[id(parameter)] = parameter.grad
                parameter.grad = None
        for parameter in self.trainable.values():
            if parameter.grad is not None:
                self.sum_of(parameter).add_(parameter.grad)
                parameter.grad = None

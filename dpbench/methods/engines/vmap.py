"""All per-example gradients at once by `torch.func.vmap`: any model it can trace, at a memory of B x parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import accumulation_dtype, weighted_factors
from dpbench.methods.engines import loop
from dpbench.methods.engines.batches import Batch, Losses, batch_size, select
from dpbench.methods.engines.functional import Parameters, losses_with, uses

PLUGIN = {
    "kind": "engine",
    "name": "vmap",
    "version": 1,
    "summary": "all per-example gradients at once (torch.func)",
    "private": True,
    "scopes": ["flat", "per_layer", "per_tensor", "per_block", "per_device"],
    "adaptive": True,
    "functional": True,
}


class Engine(loop.Engine):
    """The engine `vmap`: it materialises every per-example gradient, without hooks.

    Raises:
        DpbenchError: `vmap` cannot trace the model, such as one with a branch on a tensor's value.
    """

    rescues = True
    replaces = True

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        if batch_size(batch) == 0:
            return torch.zeros(0)
        owner = uses(self.model)
        detached = {name: parameter.detach() for name, parameter in owner.items()}

        def loss(parameters: Parameters, number: Tensor) -> Tensor:
            return losses_with(self.model, losses, parameters, select(batch, number[None]), by_use=True).squeeze(0)

        mapped = torch.func.vmap(grad_and_value(loss), in_dims=(None, 0), randomness="different")
        device = next(iter(detached.values())).device
        try:
            gradients, values = mapped(detached, torch.arange(batch_size(batch), device=device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise DpbenchError(f"engine 'vmap' cannot trace the model: {why}", "use another engine") from error
        norms = [self._clip(group, names, owner, gradients) for group, names in enumerate(self._parts(owner))]
        self.count(torch.stack(norms, 1), torch.tensor(self.bounds, device=values.device))
        return values.detach()

    def _clip(self, group: int, names: list[str], owner: dict[str, nn.Parameter], gradients: dict[str, Tensor]) -> Tensor:
        """Add one group's bounded gradients to the sums, and return its [B] norms. Uses of one tensor add before the norm."""
        total: dict[int, Tensor] = {}
        for name in names:
            gradient, key = gradients.pop(name), id(owner[name])
            total[key] = total[key] + gradient if key in total else gradient
        squares = [g.flatten(1).to(accumulation_dtype(g)).square().sum(1) for g in total.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        factors, finite = weighted_factors(norms, self.factor(group))
        for name in names:
            key = id(owner[name])
            if key in total:
                gradient = total.pop(key)[finite].to(factors.dtype)
                self.sum_of(owner[name]).add_(torch.tensordot(factors[finite], gradient, 1))
        return norms

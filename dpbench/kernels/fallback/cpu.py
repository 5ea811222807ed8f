"""Any leaf module that treats each example on its own: one vector-Jacobian product an example."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpbench.kernels.leaf import Leaf, Sums, Use


class FallbackLeaf(Leaf):
    """Correct for every module whose output for example i depends on input i alone; not fast."""

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        rest = tuple(_pick(value, index, len(use.g)) for value in use.rest)
        kwargs = {name: _pick(value, index, len(use.g)) for name, value in (use.kwargs or {}).items()}

        def output(parameters: Sums) -> Tensor:
            return torch.func.functional_call(self.module, parameters, (use.x[index : index + 1], *rest), kwargs)

        with torch.enable_grad():
            own = {name: parameter.detach() for name, parameter in self.parameters.items()}
            out, pull = torch.func.vjp(output, own)
            (gradients,) = pull(use.g[index : index + 1].to(out.dtype))
        for name, value in gradients.items():
            into[name].add_(value)


def _pick(value: object, index: int, batch: int) -> object:
    """Example `index` of an argument that has the batch first; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch:
        return value[index : index + 1]
    return value


def is_leaf(module: nn.Module) -> bool:
    """Whether the module computes with its own parameters only."""
    return next(module.children(), None) is None

"""The fallback for any module that treats each example independently: one vector-Jacobian product an example."""

from __future__ import annotations

import torch
from torch import Tensor

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Leaf, Sums, Use


class FallbackLeaf(Leaf):
    """A leaf that is exact, and slow, for every module whose output for example i depends on the arguments of example i alone.

    The module may have others inside, and the parameters may belong to those.

    Raises:
        DpbenchError: The module cannot be called on one example. The message names its class.
    """

    def add_example(self, use: Use, index: int, into: Sums) -> None:
        example = use.keep(slice(index, index + 1))

        def output(parameters: Sums) -> Tensor:
            return torch.func.functional_call(
                self.module, parameters, (example.x, *example.other_arguments), example.kwargs or {}
            )

        detached = {name: parameter.detach() for name, parameter in self.parameters.items()}
        try:
            with torch.enable_grad():
                out, pull = torch.func.vjp(output, detached)  # type: ignore[misc]
                (gradients,) = pull(example.g.to(out.dtype))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise DpbenchError(
                f"{type(self.module).__name__} cannot be differentiated for one example alone: {why}",
                "give every argument with the batch first, or use the engine 'loop'",
            ) from error
        for name, value in gradients.items():
            into[name].add_(value)

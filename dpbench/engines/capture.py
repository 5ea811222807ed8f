"""Hooks that hand every trained layer's input and output gradient to an engine during one backward pass.

The pass is `torch.autograd.grad` with respect to the first layers' outputs only: autograd then forms no weight gradient,
and no parameter's `requires_grad` is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dpbench.engines.base import Losses, check_losses
from dpbench.engines.layers import Cluster, Layer, Layout
from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Use

Ready = Callable[[Cluster, list[tuple[Layer, Use]]], None]
"""Called once a cluster's uses have all had their gradient, so early that its activations can be freed."""


class Capture:
    """Forward hooks on all layers, live only inside `running`."""

    def __init__(self, layout: Layout) -> None:
        self._live = False
        self._roots: list[Tensor] = []
        self._expected: dict[int, int] = {}
        self._arrived: dict[int, list[tuple[Layer, Use]]] = {}
        self._clusters = {id(layer): cluster for cluster in layout.clusters for layer in cluster.layers}
        self._ready: Ready = lambda *_: None
        self._batch = 0
        self._trained = {id(p) for layer in layout.layers for p in layer.parameters.values()}
        self._hooks = [layer.module.register_forward_hook(self._forward_hook(layer), with_kwargs=True) for layer in layout.layers]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def running(self) -> Iterator[None]:
        self._live = True
        try:
            yield
        finally:
            self._live = False
            self._roots, self._expected, self._arrived = [], {}, {}

    def forward(self, losses: Losses, model: torch.nn.Module, batch: Any) -> Tensor:
        """The losses [B], with every layer's input noted."""
        with torch.enable_grad():
            values = check_losses(losses(model, batch))
        self._batch = len(values)
        self._roots += _outside_leaves(values, self._trained)
        if not self._roots:
            raise DpbenchError("the losses do not depend on any trained layer", "see that the model is called inside losses")
        return values

    def backward(self, values: Tensor, ready: Ready, retain_graph: bool = False) -> None:
        """One backward pass without weight gradients; `ready` gets each cluster's uses."""
        self._ready = ready
        torch.autograd.grad(values.sum(), self._roots, retain_graph=retain_graph, allow_unused=True)
        for key, uses in list(self._arrived.items()):  # a use whose output did not reach the loss never arrives
            ready(self._clusters[key], uses)
        self._arrived = {}

    def _forward_hook(self, layer: Layer) -> Callable[..., None]:
        cluster = self._clusters[id(layer)]

        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not self._live or not torch.is_grad_enabled():
                return
            if not isinstance(output, Tensor):
                raise DpbenchError(
                    f"{layer.name} returns {type(output).__name__}, wanted one tensor", "wrap it, or use the engine 'loop'"
                )
            if not args or not isinstance(args[0], Tensor):
                raise DpbenchError(f"{layer.name} is called with keywords only", "pass its input first")
            head = id(cluster.layers[0])
            self._expected[head] = self._expected.get(head, 0) + 1
            if not any(isinstance(a, Tensor) and a.requires_grad for a in args):
                self._roots.append(output)
            x = args[0].detach()
            # Emptied in the backward pass, so that x is freed as early as autograd frees it.
            noted = [(x, x._version, args[1:], kwargs)]
            output.register_hook(lambda g: self._arrive(layer, head, noted, g) if self._live else None)

        return hook

    def _arrive(self, layer: Layer, head: int, noted: list[tuple[Any, ...]], g: Tensor) -> None:
        x, version, rest, kwargs = noted[0]
        if x._version != version:
            raise DpbenchError(
                f"the input of {layer.name} was changed in place after it was used", "make that operation out of place"
            )
        if x.shape[0] != self._batch:
            raise DpbenchError(
                f"{layer.name}: its input is {list(x.shape)}, the batch has {self._batch} examples",
                "every trained layer's input must have the batch first (expand position ids to [B, T])",
            )
        noted.clear()
        uses = self._arrived.setdefault(head, [])
        uses.append((layer, Use(x, g.detach(), rest, kwargs)))
        if len(uses) == self._expected[head]:
            del self._arrived[head]
            self._live = False  # an engine may call the module again, which is not a use
            with torch.no_grad():
                self._ready(self._clusters[head], uses)
            self._live = True


def _outside_leaves(values: Tensor, trained: set[int]) -> list[Tensor]:
    """Tensors the losses depend on that want a gradient but are not trained, such as inputs: the pass must reach them too,
    or layers that only depend on these would not be seen."""
    found, seen, stack = [], set(), [values.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in trained:
            found.append(variable)
        stack += [following for following, _ in node.next_functions]
    return found

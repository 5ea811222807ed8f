"""Hooks that hand every trained layer's input and output gradient to an engine during one backward pass.

The pass is `torch.autograd.grad` with respect to the first layers' outputs only: autograd then forms no weight gradient,
and no parameter's `requires_grad` is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dpbench.engines.base import Losses, check_losses
from dpbench.engines.layers import Cluster, Layer, Layout
from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Use

Ready = Callable[[Cluster, list[tuple[Layer, Use]]], None]
"""Called once a cluster's uses have all had their gradient, so early that its activations can be freed."""


class Pass:
    """One forward pass, and what its layers wait for. Several may be open at once, as in a pipeline."""

    def __init__(self, trained: set[int]) -> None:
        self.batch: int | None = None
        self._trained = trained
        self._open = True
        self._again = False
        self._roots: list[Tensor] = []
        self._expected: dict[int, int] = {}
        self._arrived: dict[int, list[tuple[Layer, Use]]] = {}
        self._ready: Ready = lambda *_: None
        self._clusters: dict[int, Cluster] = {}

    def backward(
        self,
        outputs: Tensor,
        ready: Ready,
        gradients: Tensor | None = None,
        inputs: Sequence[Tensor] = (),
        retain_graph: bool = False,
    ) -> list[Tensor | None]:
        """One backward pass without weight gradients; `ready` gets each cluster's uses. Closes this pass, unless the graph is
        retained for another one, which sees the same gradients.

        Args:
            outputs: the loss, a scalar, or a stage's output, with its `gradients`.
            inputs: what else is asked for.

        Returns:
            The gradients of `inputs`, None where the outputs do not depend on one.
        """
        self._ready, self._again = ready, retain_graph
        asked = {id(x) for x in inputs}
        roots = [x for x in self._roots + _outside_leaves(outputs, self._trained) if id(x) not in asked]
        if not roots and not asked:
            raise DpbenchError("the losses do not depend on any trained layer", "see that the model is called inside losses")
        try:
            found = torch.autograd.grad(outputs, [*roots, *inputs], gradients, retain_graph=retain_graph, allow_unused=True)
            for key, uses in list(self._arrived.items()):  # a use whose output did not reach the loss never arrives
                ready(self._clusters[key], uses)
        finally:
            self._arrived = {}
            if not retain_graph:
                self.close()
        return list(found[len(roots) :])

    def close(self) -> None:
        """Let go of the graph: a backward pass by anybody else is none of this one's."""
        self._open = False
        self._roots, self._expected, self._arrived = [], {}, {}

    def note(self, layer: Layer, cluster: Cluster, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """One call of a layer in the forward pass."""
        if not isinstance(output, Tensor):
            raise DpbenchError(
                f"{layer.name} returns {type(output).__name__}, wanted one tensor", "wrap it, or use the engine 'loop'"
            )
        if not args or not isinstance(args[0], Tensor):
            raise DpbenchError(f"{layer.name} is called with keywords only", "pass its input first")
        head = id(cluster.layers[0])
        self._clusters[head] = cluster
        self._expected[head] = self._expected.get(head, 0) + 1
        # Sharded parameters are other tensors while the layer runs.
        self._trained |= {id(p) for p in layer.module.parameters(recurse=False)}
        if not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            self._roots.append(output)
        x = args[0].detach()
        # Emptied in the backward pass, so that x is freed as early as autograd frees it.
        noted = [(x, x._version, args[1:], kwargs)]
        output.register_hook(lambda g: self._arrive(layer, head, noted, g) if self._open else None)

    def _arrive(self, layer: Layer, head: int, noted: list[tuple[Any, ...]], g: Tensor) -> None:
        x, version, rest, kwargs = noted[0]
        if x._version != version:
            raise DpbenchError(
                f"the input of {layer.name} was changed in place after it was used", "make that operation out of place"
            )
        if x.shape[0] != self.batch:
            raise DpbenchError(
                f"{layer.name}: its input is {list(x.shape)}, the batch has {self.batch} examples",
                "every trained layer's input must have the batch first (expand position ids to [B, T])",
            )
        if not self._again:
            noted.clear()
        uses = self._arrived.setdefault(head, [])
        uses.append((layer, Use(x, g.detach(), rest, kwargs)))
        if len(uses) == self._expected[head]:
            del self._arrived[head]
            with torch.no_grad():
                self._ready(self._clusters[head], uses)


class Capture:
    """Forward hooks on all layers, live only inside `forward`."""

    def __init__(self, layout: Layout) -> None:
        self._pass: Pass | None = None
        self._clusters = {id(layer): cluster for cluster in layout.clusters for layer in cluster.layers}
        self._trained = {id(p) for layer in layout.layers for p in layer.parameters.values()}
        self._hooks = [self._hook(layer) for layer in layout.layers]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def forward(self, call: Callable[[], Tensor]) -> tuple[Pass, Tensor]:
        """`call()` with every layer's input noted: (the open pass, what it returned [B, ...])."""
        self._pass = one = Pass(set(self._trained))
        try:
            with torch.enable_grad():
                output = call()
        finally:
            self._pass = None
        one.batch = len(output)
        return one, output

    def losses(self, losses: Losses, model: torch.nn.Module, batch: Any) -> tuple[Pass, Tensor]:
        """(the open pass, the losses [B])."""
        return self.forward(lambda: check_losses(losses(model, batch)))

    def _hook(self, layer: Layer) -> RemovableHandle:
        # Before other hooks: `fully_shard` has one that takes the layer's weights away.
        return layer.module.register_forward_hook(self._forward_hook(layer), with_kwargs=True, prepend=True)

    def _forward_hook(self, layer: Layer) -> Callable[..., None]:
        cluster = self._clusters[id(layer)]

        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._pass is not None and torch.is_grad_enabled():
                self._pass.note(layer, cluster, args, kwargs, output)

        return hook


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

"""Hooks that hand every trained layer's input and output gradient to an engine during one backward pass.

The pass is `torch.autograd.grad` with respect to the first layers' outputs only: autograd then forms no weight gradient,
and no parameter's `requires_grad` is touched.

An engine clips only what hooks see, so every pass is checked against the graph that autograd recorded of it: a trained tensor may
be reached from inside the calls of its layer, and from nowhere else (`Pass.check`). A gradient that came any other way would be
lost, or released unclipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.hooks import RemovableHandle

from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Use
from dpbench.methods.engines.batches import Batch, Losses, check_losses
from dpbench.methods.engines.layers import Cluster, Layer, Layout

Ready = Callable[[Cluster, list[tuple[Layer, Use]]], None]
"""A function that is called once all uses of a cluster have their gradients, so early that its activations can be freed."""

Shapes = dict[tuple[str, int], tuple[int | None, ...]]
"""For (label of a layer, number of its call in a pass), the first dimensions of its arguments except the first; None for what has
no dimension."""

_BY_DIMENSION = ("_saved_dim", "_saved_dims")
_MOVES_ROWS = frozenset(
    f"{name}Backward{number}"
    for name in ("Cat", "Flip", "Gather", "IndexAdd", "IndexSelect", "Roll", "Scatter", "ScatterAdd", "Sort", "Stack", "Topk")
    for number in range(3)
)
_NOTHING_TRAINED = "the losses do not depend on any trained layer"
_CHECKPOINT = "CheckpointFunctionBackward"
_COMPILED = "CompiledFunctionBackward"


class OutsideUse(DpbenchError):
    """A trained tensor is used outside the calls of its layer. `layers` names the layers that it belongs to."""

    def __init__(self, parameter: str, layers: Iterable[str], by: str) -> None:
        self.layers = sorted(set(layers))
        super().__init__(
            f"{parameter} is used outside the call of {' and '.join(self.layers)} (by {by}), where its gradient is not seen",
            "call the layer instead of using its tensor, make operations on its output out of place, or use the engine 'loop'",
        )


@dataclass
class _Owner:
    """A trained tensor's name, layers, and the id of its parameter (which is another object while a sharded one is in use)."""

    name: str
    layers: list[str]
    parameter: int


class Pass:
    """One forward pass, with the state that its layers keep for the backward pass. Several may be open at once, as in a pipeline.

    `check` sets `reached`, the ids of the trained tensors that the outputs depend on, and `moves_rows`, whether an operation in
    the graph can move the rows of a batch to other positions. For `shapes` see `Shapes`.
    """

    def __init__(self, owners: dict[int, _Owner], batched: dict[tuple[str, int], tuple[bool, ...]]) -> None:
        """Open a pass.

        Args:
            owners: By the id of a trained tensor.
            batched: Which arguments have the batch first, where known.
        """
        self.batch: int | None = None
        self.reached: set[int] = set()
        self.moves_rows = False
        self.shapes: Shapes = {}
        self._owners, self._batched = dict(owners), batched
        self._open = True
        self._again = False
        self._edges: list[GradientEdge] = []  # of the layers' outputs
        self._roots: list[GradientEdge] = []  # those without another between them and the leaves
        self._outside: list[Tensor] = []
        self._inputs: list[list[tuple[Any, ...]]] = []  # of the layers, each emptied once it is used
        self._inside: dict[str, set[Node]] = {}
        self._exits: dict[str, set[tuple[Node, int]]] = {}
        self._calls: Counter[str] = Counter()
        self._checked = False
        self._expected: dict[int, int] = {}
        self._arrived: dict[int, list[tuple[Layer, Use]]] = {}
        self._ready: Ready = lambda *_: None
        self._watch: Callable[[Layer, Use], None] | None = None
        self._clusters: dict[int, Cluster] = {}

    def check(self, outputs: Tensor) -> None:
        """Compare the noted calls with the graph behind the outputs, before anything is added to a sum.

        Raises:
            OutsideUse: A trained tensor is reached from outside the calls of its layers.
            DpbenchError: The graph hides what is computed: reentrant checkpoints, or code that was compiled before.
        """
        self._checked = True
        noted = {(edge.node, edge.output_nr): edge for edge in self._edges}
        outside: dict[int, Tensor] = {}
        above_noted: dict[Node, bool] = {}  # whether a noted output is between a node and the leaves
        reached: set[tuple[Node, int]] = set()
        start = (outputs.grad_fn, outputs.output_nr)
        inside: dict[Node, list[str]] = {}
        for layer, nodes in self._inside.items():
            for node in nodes:
                inside.setdefault(node, []).append(layer)
        stack = [] if outputs.grad_fn is None else [outputs.grad_fn]
        while stack:
            node = stack[-1]
            edges = [(following, number) for following, number in node.next_functions if following is not None]
            if node not in above_noted:
                above_noted[node] = False
                self._look_at(node, edges, outside)
                self.moves_rows = self.moves_rows or _moves_rows(node, self.batch)
                self._check_exits(node, edges, inside)
                below = [following for following, _ in edges if following not in above_noted]
                stack += (following for following in below if not hasattr(following, "variable"))
                if stack[-1] is not node:
                    continue
            stack.pop()
            reached |= noted.keys() & set(edges)
            above_noted[node] |= any(edge in noted or above_noted.get(edge[0], False) for edge in edges)
        reached |= noted.keys() & {start}
        self._roots = [noted[edge] for edge in reached if not above_noted[edge[0]]]
        self._outside = list(outside.values())
        self._edges = []
        self._exits.clear()
        self._inside.clear()  # which would keep the graph, and with it the activations

    def _look_at(self, node: Node, edges: list[tuple[Node, int]], outside: dict[int, Tensor]) -> None:
        if node.name() == _CHECKPOINT:
            raise DpbenchError(
                "a reentrant checkpoint hides its layers from the graph: their gradients would not be seen",
                "call torch.utils.checkpoint with use_reentrant=False",
            )
        for following, _ in edges:
            variable = getattr(following, "variable", None)
            if variable is None:
                continue
            if (owner := self._owners.get(id(variable))) is None:
                outside[id(variable)] = variable
            else:
                self._check_use(node, owner.name, owner.layers)
                self.reached.add(owner.parameter)

    def _check_exits(self, node: Node, edges: list[tuple[Node, int]], inside: dict[Node, list[str]]) -> None:
        """Check that gradients enter the calls of a layer through its outputs alone, where the hooks are.

        They do not if an output that is a view is changed in place (torch then records another graph of it), or if a tensor from
        inside a call is used elsewhere.
        """
        for edge in edges:
            if hasattr(edge[0], "variable"):  # a tied tensor is inside the calls of several layers
                continue
            for layer in inside.get(edge[0], ()):
                if edge not in self._exits[layer] and node not in self._inside[layer]:
                    raise OutsideUse(f"what {layer} computes", [layer], node.name())

    def _check_use(self, node: Node, parameter: str, layers: list[str]) -> None:
        if any(node in self._inside.get(layer, ()) for layer in layers):
            return
        if node.name() == _COMPILED:
            raise DpbenchError(
                f"{parameter} is used by code that torch.compile processed before the engine was attached: its layer is not seen",
                "attach first and compile afterwards, or leave torch.compile out",
            )
        raise OutsideUse(parameter, layers, node.name())

    def backward(
        self,
        outputs: Tensor,
        ready: Ready,
        gradients: Tensor | None = None,
        inputs: Sequence[Tensor] = (),
        retain_graph: bool = False,
    ) -> list[Tensor | None]:
        """Make one backward pass without weight gradients, and pass each cluster's uses to `ready`.

        This closes the pass, unless the graph is retained for another one, which sees the same gradients.

        Args:
            outputs: The loss, a scalar, or a stage's output, with its `gradients`.
            inputs: Further tensors whose gradients are returned.

        Returns:
            The gradients of `inputs`, None where the outputs do not depend on one.
        """
        if not self._checked:
            self.check(outputs)
        self._ready, self._again = ready, retain_graph
        asked = {id(x) for x in inputs}
        roots: list[Any] = [*self._roots, *(x for x in self._outside if id(x) not in asked)]
        if not roots and not asked:
            raise DpbenchError(_NOTHING_TRAINED, "see that the model is called inside losses")
        try:
            all_gradients = torch.autograd.grad(
                outputs, [*roots, *inputs], gradients, retain_graph=retain_graph, allow_unused=True
            )
            for key, uses in list(self._arrived.items()):  # a use whose output did not reach the loss never arrives
                ready(self._clusters[key], uses)
        finally:
            self._arrived = {}
            if not retain_graph:
                self.close()
        return list(all_gradients[len(roots) :])

    def watched(
        self, outputs: Tensor, watch: Callable[[Layer, Use], None], tensors: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Make a backward pass like `backward` that passes each layer's use to `watch` and leaves this pass open.

        Returns:
            Autograd's gradients of `tensors`, None where the outputs do not depend on one.
        """
        sources: Sequence[Any] = tensors or [*self._roots, *self._outside]
        self._watch = watch
        try:
            return list(torch.autograd.grad(outputs, sources, retain_graph=True, allow_unused=True))
        finally:
            self._watch = None

    def close(self) -> None:
        """Release the graph, which refers to this pass and is referred to by it. Later backward passes do not count here."""
        self._open = False
        self._roots, self._outside, self._expected, self._arrived = [], [], {}, {}
        for noted in self._inputs:
            noted.clear()
        self._inputs = []

    def note(self, layer: Layer, cluster: Cluster, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        """Note one call of a layer in the forward pass."""
        if not isinstance(output, Tensor):
            raise DpbenchError(
                f"{layer.name}: {type(layer.module).__name__} returns {type(output).__name__}, not one tensor",
                "wrap it, or use the engine 'loop'",
            )
        if not args or not isinstance(args[0], Tensor):
            raise DpbenchError(
                f"{layer.name}: the first argument of {type(layer.module).__name__} is no tensor",
                "pass its input first, or use the engine 'loop'",
            )
        if not output.requires_grad:  # computed without gradients, so it has no path to the losses
            return
        head = id(cluster.layers[0])
        self._clusters[head] = cluster
        self._expected[head] = self._expected.get(head, 0) + 1
        for name, registered in layer.parameters.items():
            present = layer.module._parameters.get(name)
            if present is not None and present is not registered:  # sharded parameters are other objects while the layer runs
                self._owners.setdefault(id(present), _Owner(f"{layer.name}.{name}", [layer.name], id(registered)))
        arguments = args if len(args) == 1 and not kwargs else tree_leaves((args, kwargs))
        inputs = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        edge = get_gradient_edge(output)
        self._edges.append(edge)
        self._exits.setdefault(layer.name, set()).add((edge.node, edge.output_nr))
        inside = self._inside.setdefault(layer.name, set())
        inside |= _between(edge.node, [get_gradient_edge(a).node for a in inputs])
        call = (layer.label, self._calls[layer.label])
        self._calls[layer.label] += 1
        if len(arguments) > 1:
            self.shapes[call] = _first_dimensions((args[1:], kwargs))
        x = args[0].detach()
        # Emptied in the backward pass, so that x is freed as early as autograd frees it.
        noted = [(x, x._version, args[1:], kwargs, self._batched.get(call))]
        self._inputs.append(noted)
        output.register_hook(lambda g: self._arrive(layer, head, noted, g) if self._open else None)

    def _arrive(self, layer: Layer, head: int, noted: list[tuple[Any, ...]], g: Tensor) -> None:
        x, version, other_arguments, kwargs, batched = noted[0]
        if x._version != version:
            raise DpbenchError(
                f"the input of {layer.name} was changed in place after it was used", "make that operation out of place"
            )
        for kind, tensor in (("input", x), ("output", g)):
            if tensor.dim() == 0 or tensor.shape[0] != self.batch:
                raise DpbenchError(
                    f"{layer.name}: its {kind} is {list(tensor.shape)}, the batch has {self.batch} examples",
                    "every trained layer's input and output must have the batch first (expand position ids to [B, T])",
                )
        use = Use(x, g.detach(), other_arguments, kwargs, batched)
        if self._watch is not None:
            self._watch(layer, use)
            return
        if not self._again:
            noted.clear()
        uses = self._arrived.setdefault(head, [])
        uses.append((layer, use))
        if len(uses) == self._expected[head]:
            del self._arrived[head]
            with torch.no_grad():
                self._ready(self._clusters[head], uses)


class Capture:
    """Forward hooks on all layers, which are active only inside `forward`.

    batched: Which arguments of a layer's call have the batch first, where that has been examined.
    """

    def __init__(self, layout: Layout) -> None:
        self.batched: dict[tuple[str, int], tuple[bool, ...]] = {}
        self._pass: Pass | None = None
        self._clusters = {id(layer): cluster for cluster in layout.clusters for layer in cluster.layers}
        self._owners: dict[int, _Owner] = {}
        for layer in layout.layers:
            for name, parameter in layer.parameters.items():
                owner = self._owners.setdefault(id(parameter), _Owner(f"{layer.name}.{name}", [], id(parameter)))
                owner.layers.append(layer.name)
        self._hooks = [self._hook(layer) for layer in layout.layers]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def forward(self, call: Callable[[], Tensor]) -> tuple[Pass, Tensor]:
        """Call `call()` while noting every layer's input, and return the open pass and the result [B, ...]."""
        self._pass = open_pass = Pass(self._owners, self.batched)
        try:
            with torch.enable_grad():
                output = call()
        finally:
            self._pass = None
        open_pass.batch = len(output)
        return open_pass, output

    def losses(self, losses: Losses, model: torch.nn.Module, batch: Batch) -> tuple[Pass, Tensor]:
        """Return the open pass and the losses [B], after `Pass.check`.

        Raises:
            DpbenchError: As in `Pass.check`, or the losses are not one value an example.
        """
        open_pass, values = self.forward(lambda: check_losses(losses(model, batch)))
        try:
            open_pass.check(values)
            if not values.requires_grad:
                raise DpbenchError(_NOTHING_TRAINED, "see that the model is called inside losses")
        except DpbenchError:
            open_pass.close()
            raise
        return open_pass, values

    def _hook(self, layer: Layer) -> RemovableHandle:
        # Before other hooks: `fully_shard` has one that frees the layer's weights.
        return layer.module.register_forward_hook(self._forward_hook(layer), with_kwargs=True, prepend=True)

    def _forward_hook(self, layer: Layer) -> Callable[..., None]:
        cluster = self._clusters[id(layer)]

        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            if self._pass is not None and torch.is_grad_enabled():
                self._pass.note(layer, cluster, args, kwargs, output)

        return hook


def _moves_rows(node: Node, batch: int | None) -> bool:
    """Return whether a node is an operation over the first dimension that can move rows to other positions."""
    if (name := node.name()) == "IndexBackward0":
        first = node._saved_indices[0]  # type: ignore[attr-defined]
        return first is not None and not torch.equal(first.flatten(), torch.arange(first.numel(), device=first.device))
    if name not in _MOVES_ROWS or (name == "StackBackward0" and len(node.next_functions) != batch):
        return False
    dimensions = next((value for key in _BY_DIMENSION if (value := getattr(node, key, None)) is not None), 0)
    return 0 in dimensions if isinstance(dimensions, tuple | list) else dimensions == 0


def _between(start: Node, ends: list[Node]) -> set[Node]:
    """Return the nodes from `start` back to `ends`, without `ends`."""
    seen: set[Node] = set()
    stop = set(ends)
    stack: list[Node | None] = [start]
    while stack:
        node = stack.pop()
        if node is None or node in seen or node in stop:
            continue
        seen.add(node)
        stack += [following for following, _ in node.next_functions]
    return seen


def _first_dimensions(arguments: object) -> tuple[int | None, ...]:
    leaves, _ = tree_flatten(arguments)
    return tuple(len(leaf) if isinstance(leaf, Tensor) and leaf.dim() > 0 else None for leaf in leaves)

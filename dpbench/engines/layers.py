"""The leaf modules whose parameters are trained, and the groups that share a norm."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile

import torch
from torch import nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.kernels import launch
from dpbench.kernels.fallback.cpu import FallbackLeaf, is_leaf
from dpbench.kernels.leaf import Leaf
from dpbench.mechanism import Clipping
from dpbench.paths import PACKAGE

_MIXES_EXAMPLES = (nn.modules.batchnorm._BatchNorm,)
_WAYS_OUT = "freeze it (requires_grad_(False)), move it into a leaf module of its own, or use the engine 'loop'"


@cache
def _leaf_classes(file: str) -> dict[type[nn.Module], type[Leaf]]:
    """Module class -> its Leaf, from every `kernels/<op>/<file>.py`."""
    found: dict[type[nn.Module], type[Leaf]] = {}
    for path in sorted((PACKAGE / "kernels").glob(f"*/{file}.py")):
        module = importlib.import_module(f"dpbench.kernels.{path.parent.name}.{file}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Leaf) and value.__module__ == module.__name__:
                found |= dict.fromkeys(value.modules, value)
    return found


def _leaf(name: str, module: nn.Module, kernels: str) -> Leaf:
    """The leaf of one module by `kernels`: auto, torch, native or triton.

    Raises:
        DpbenchError: `native` or `triton`, and there is no such kernel for this module, dtype or device; names the layer.
    """
    device = next(p for p in module.parameters(recurse=False) if p.requires_grad).device
    file = kernels if kernels != "auto" else "triton" if device.type in launch.DEVICES else "native"
    if file != "torch":
        why = _unavailable(file, device)
        if why is None and (kind := _leaf_classes(file).get(type(module))) is not None:
            why = kind.refuses(module)
            if why is None:
                return kind(module)
        elif why is None and file == "triton":  # in C are those layers alone where torch's way costs a pass over memory
            why = "it has no Triton kernel"
        if why is not None and kernels != "auto":
            raise DpbenchError(
                f"kernels: {file} cannot serve layer {name} ({type(module).__name__}): {why}", "use kernels: auto, or torch"
            )
    return _leaf_classes("cpu").get(type(module), FallbackLeaf)(module)


def _unavailable(file: str, device: torch.device) -> str | None:
    """Why kernels of one kind cannot run on tensors of `device`, or None; each says the rest itself."""
    if file == "triton":
        return launch.unavailable(device)
    return None if device.type == "cpu" else f"its tensors are on {device.type}, and kernels in C are for the CPU"


@dataclass
class Layer:
    """One leaf module with trainable parameters, or one of its tensors where each is clipped by itself.

    name: of the module; parameters: local name -> parameter; tensor: the local name of the one that this is of, "" for all.
    """

    name: str
    module: nn.Module
    leaf: Leaf
    tensor: str = ""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return self.leaf.parameters

    @property
    def label(self) -> str:
        return f"{self.name}.{self.tensor}" if self.tensor else self.name


@dataclass
class Cluster:
    """Layers that share a tensor and, under `tied: sum`, are one gradient; most clusters are one layer."""

    layers: list[Layer]
    group: int = 0

    @property
    def name(self) -> str:
        return "+".join(layer.label for layer in self.layers)


@dataclass
class Layout:
    """All layers of a model under a clipping.

    clusters: what is clipped at once inside a group; groups: names per group; sizes: parameters per group;
    shared: groups that share a tensor (`tied: per_use`): their bounds add before the groups are combined.
    """

    clusters: list[Cluster]
    groups: list[list[str]]
    sizes: list[int]
    shared: list[list[int]] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        return [layer for cluster in self.clusters for layer in cluster.layers]

    @property
    def labels(self) -> list[str]:
        """One of each group, none twice: `all` for a single one, the longest prefix that its names share, or its number."""
        if len(self.groups) == 1:
            return ["all"]
        shared = [_prefix(names) for names in self.groups]
        return [name if name and shared.count(name) == 1 else f"group{number}" for number, name in enumerate(shared)]


def _prefix(names: list[str]) -> str:
    """The longest dotted prefix of all."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))


def check_examples_apart(model: nn.Module) -> None:
    """Refuse modules that mix the examples of a batch.

    Raises:
        DpbenchError: batch norm in training mode; names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, _MIXES_EXAMPLES) and (module.training or any(p.requires_grad for p in module.parameters())):
            raise DpbenchError(
                f"{name} ({type(module).__name__}) mixes the examples of a batch: no per-example gradient exists",
                "use GroupNorm or LayerNorm, or freeze it and put it into eval mode",
            )


def find_layers(model: nn.Module, kernels: str = "torch") -> list[Layer]:
    """Every leaf module with a trainable parameter, in the order of registration.

    Raises:
        DpbenchError: a trainable parameter that belongs to no leaf module; names it. `kernels` as in `engines.attach`.
    """
    check_examples_apart(model)
    found = []
    for name, module in model.named_modules():
        own = [n for n, p in module.named_parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        path = name or "(model)"
        if not is_leaf(module):
            raise DpbenchError(
                f"parameter {path}.{own[0]} belongs to {type(module).__name__}, which has modules inside", _WAYS_OUT
            )
        found.append(Layer(path, module, _leaf(path, module, kernels)))
    if not found:
        raise DpbenchError("the model has no trainable parameter", "call requires_grad_(True) on what is to be trained")
    return found


def lay_out(model: nn.Module, clipping: Clipping, kernels: str = "torch", stage: bool = False) -> Layout:
    """Layers, what is tied to what, and the groups of the clipping's scope; `kernels` as in `engines.attach`.

    Args:
        stage: the model is one stage of a pipeline, which is one device.

    Raises:
        DpbenchError: a scope that cannot group this model, or uses of a tied tensor that cannot be bounded apart.
    """
    scope = plugins.get("scope", clipping.scope)
    layers = find_layers(model, kernels)
    if scope.extra.get("unit") == "tensor":
        layers = [Layer(layer.name, layer.module, layer.leaf.only(n), n) for layer in layers for n in layer.parameters]
    families = _families(layers)
    clusters = [Cluster(f) for f in families] if clipping.tied == "sum" else [Cluster([layer]) for layer in layers]
    by_name = {cluster.name: cluster for cluster in clusters}
    known = {"sizes": [_size([cluster]) for cluster in clusters], "devices": 1 if stage else clipping.devices}
    groups = scope.load().groups(list(by_name), **{need: known[need] for need in scope.extra.get("needs", ())})
    sizes = []
    for number, names in enumerate(groups):
        for name in names:
            by_name[name].group = number
        sizes.append(_size([by_name[name] for name in names]))
    shared = []
    if clipping.tied == "per_use":
        shared = [[by_name[layer.label].group for layer in f] for f in families if len(f) > 1]
        if crowded := [k for together in shared for k in together if len(groups[k]) > 1]:
            raise DpbenchError(
                f"tied: per_use with {clipping.scope} clipping: a use of a tied tensor is in a group with others "
                f"({', '.join(groups[crowded[0]][:3])}, ...) and has no bound of its own",
                "use tied: sum, or scope per_layer or per_tensor",
            )
    return Layout(clusters, groups, sizes, shared)


def _size(clusters: list[Cluster]) -> int:
    """Parameters of all together, a shared tensor counted once."""
    return sum({id(p): p.numel() for c in clusters for layer in c.layers for p in layer.parameters.values()}.values())


def _families(layers: list[Layer]) -> list[list[Layer]]:
    """Layers that share a parameter tensor, together."""
    families: list[list[Layer]] = []
    for layer in layers:
        own = {id(p) for p in layer.parameters.values()}
        touching = [f for f in families if any(id(p) in own for other in f for p in other.parameters.values())]
        merged = [other for f in touching for other in f] + [layer]
        families = [f for f in families if f not in touching] + [merged]
    return families

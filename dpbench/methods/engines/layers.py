"""The modules whose parameters are trained, where their gradients are captured, and the groups that share a norm."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.kernels import launch
from dpbench.kernels.fallback.cpu import FallbackLeaf
from dpbench.kernels.leaf import Leaf
from dpbench.paths import PACKAGE
from dpbench.privacy.mechanism import Allocation, Clipping, noise_stds, sensitivity

_MIXES_EXAMPLES = (nn.modules.batchnorm._BatchNorm,)
_WAYS_OUT = "freeze it (requires_grad_(False)), or use the engine 'loop', which needs no layers under flat clipping"


@cache
def _leaf_classes(file: str) -> dict[type[nn.Module], type[Leaf]]:
    """Return the Leaf of each module class, from every `kernels/<op>/<file>.py`."""
    leaf_of_class: dict[type[nn.Module], type[Leaf]] = {}
    for path in sorted((PACKAGE / "kernels").glob(f"*/{file}.py")):
        module = importlib.import_module(f"dpbench.kernels.{path.parent.name}.{file}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Leaf) and value.__module__ == module.__name__:
                leaf_of_class |= dict.fromkeys(value.modules, value)
    return leaf_of_class


def _leaf(name: str, module: nn.Module, kernels: str) -> Leaf:
    """Return the leaf of one module by `kernels`: auto, torch, native or triton.

    Raises:
        DpbenchError: It is `native` or `triton`, and there is no such kernel for this module, dtype or device. The message names
            the layer.
    """
    device = next(p for p in module.parameters(recurse=False) if p.requires_grad).device
    file = kernels if kernels != "auto" else "triton" if device.type in launch.DEVICES else "native"
    if file != "torch":
        why = _unavailable(file, device)
        if why is None and _computes_as_its_class(module) and (kind := _leaf_classes(file).get(type(module))) is not None:
            why = kind.refuses(module)
            if why is None:
                return kind(module)
        elif why is None and file == "triton":  # kernels in C exist only for layers where torch needs a pass over memory
            why = "it has no Triton kernel"
        if why is not None and kernels != "auto":
            raise DpbenchError(
                f"kernels: {file} cannot serve layer {name} ({type(module).__name__}): {why}", "use kernels: auto, or torch"
            )
    return (_leaf_classes("cpu").get(type(module), FallbackLeaf) if _computes_as_its_class(module) else FallbackLeaf)(module)


def _computes_as_its_class(module: nn.Module) -> bool:
    """Return whether a module computes its output from input, `weight` and `bias` by its class's `forward`, as kernels assume.

    It does not if the instance has another `forward`, or if a hook computes the weight from other parameters, as
    `torch.nn.utils.weight_norm` does.
    """
    return "forward" not in vars(module) and "weight" in module._parameters and set(module._parameters) <= {"weight", "bias"}


def _unavailable(file: str, device: torch.device) -> str | None:
    """Return why kernels of one kind cannot run on tensors of `device`, or None; leaf classes know further reasons."""
    if file == "triton":
        return launch.unavailable(device)
    return None if device.type == "cpu" else f"its tensors are on {device.type}, and kernels in C are for the CPU"


@dataclass
class Layer:
    """The trainable parameters of one module, or one of its tensors where each is clipped separately.

    name: The name of the module that holds the parameters. module: The module whose calls give their gradients: that module or
    one around it. parameters: The parameters by their names within `module`. tensor: The local name of the single tensor, "" for
    all tensors.
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

    clusters: The clusters that are clipped inside the groups. groups: The names in each group. sizes: The number of parameters in
    each group. shared: Groups that share a tensor (`tied: per_use`); their bounds add before the groups are combined.
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
        """One unique label for each group: `all` for a single group, the longest prefix that its names share, or its number."""
        if len(self.groups) == 1:
            return ["all"]
        shared = [_prefix(names) for names in self.groups]
        return [name if name and shared.count(name) == 1 else f"group{number}" for number, name in enumerate(shared)]

    def noise(self, bounds: list[float], noise_multiplier: float, allocation: Allocation) -> tuple[float, dict[int, float]]:
        """Return the sensitivity of the sums of groups with these bounds, and id(parameter) -> the noise std of its sum.

        Groups that share a tensor are one with the sum of their bounds.
        """
        merged = {k for group in self.shared for k in group}
        sets = [[k] for k in range(len(bounds)) if k not in merged] + self.shared
        set_bounds = [sum(bounds[k] for k in group) for group in sets]
        sizes = [max(self.sizes[k] for k in group) for group in sets]
        stds = noise_stds(set_bounds, noise_multiplier, allocation, sizes)
        group_std = {k: std for group, std in zip(sets, stds, strict=True) for k in group}
        tensors = ((c.group, p) for c in self.clusters for layer in c.layers for p in layer.parameters.values())
        return sensitivity(set_bounds), {id(parameter): group_std[group] for group, parameter in tensors}


def _prefix(names: list[str]) -> str:
    """Return the longest dotted prefix of all names."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))


def check_examples_apart(model: nn.Module) -> None:
    """Refuse modules that mix the examples of a batch.

    Raises:
        DpbenchError: There is batch norm in training mode. The message names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, _MIXES_EXAMPLES) and (module.training or any(p.requires_grad for p in module.parameters())):
            raise DpbenchError(
                f"{name} ({type(module).__name__}) mixes the examples of a batch: no per-example gradient exists",
                "use GroupNorm or LayerNorm, or freeze it and put it into eval mode",
            )


def find_layers(
    model: nn.Module, kernels: str = "torch", capture: bool = True, enclosing: Mapping[str, str] | None = None
) -> list[Layer]:
    """Return one layer for every module that directly holds trainable parameters, in the order of registration.

    Args:
        kernels: As in `engines.attach`.
        capture: Whether gradients are to be captured from calls of modules. If not, `module` is the one with the parameters.
        enclosing: By layer name, the module around it (by name) whose calls give its gradients, if those of the layer do not.

    Raises:
        DpbenchError: The gradients of a module cannot be captured. The message names it.
    """
    by_name = dict(model.named_modules())
    layers = []
    for name, owner in by_name.items():
        local_names = [n for n, p in owner.named_parameters(recurse=False) if p.requires_grad]
        if not local_names:
            continue
        path = name or "(model)"
        if not capture:
            layers.append(Layer(path, owner, Leaf(owner)))
            continue
        place = (enclosing or {}).get(path, name)
        place = place if _is_called(by_name[place]) else caller_of(by_name, place, f"{path}.{local_names[0]}")
        _check_can_capture(path, by_name[place])
        if place == name and next(owner.children(), None) is None:
            layers.append(Layer(path, owner, _leaf(path, owner, kernels)))
            continue
        if kernels in ("native", "triton"):
            raise DpbenchError(f"kernels: {kernels} cannot serve {path} ({type(owner).__name__})", "use kernels: auto, or torch")
        inside = name[len(place) :].lstrip(".")
        parameters = {f"{inside}.{n}" if inside else n: owner._parameters[n] for n in local_names}
        layers.append(Layer(path, by_name[place], FallbackLeaf(by_name[place], parameters)))
    if not layers:
        raise DpbenchError("the model has no trainable parameter", "call requires_grad_(True) on what is to be trained")
    return layers


def _is_called(module: nn.Module) -> bool:
    """Return whether a module is called in the forward pass of a model.

    Containers such as `nn.ParameterList` are not, and a parametrization is called when its layer's weight is read.
    """
    if isinstance(module, ParametrizationList):
        return False
    return getattr(type(module), "forward", None) is not nn.Module.forward or "forward" in vars(module)


def caller_of(modules: Mapping[str, nn.Module], name: str, parameter: str) -> str:
    """Return the name of the nearest module around `name` that has a forward pass.

    Raises:
        DpbenchError: There is none. The message names `parameter`.
    """
    while name:
        name = name.rpartition(".")[0]
        if _is_called(modules[name]):
            return name
    raise DpbenchError(f"parameter {parameter} is used outside the call of every module of the model", _WAYS_OUT)


def _check_can_capture(name: str, module: nn.Module) -> None:
    """Refuse modules whose calls cannot be seen by hooks.

    Raises:
        DpbenchError: It is compiled by TorchScript. The message names the layer.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise DpbenchError(
            f"{name} is compiled by TorchScript, which has no hooks: its per-example gradients cannot be captured",
            "train the module that was scripted, freeze it, or use the engine 'loop'",
        )


def lay_out(
    model: nn.Module,
    clipping: Clipping,
    kernels: str = "torch",
    stage: bool = False,
    capture: bool = True,
    enclosing: Mapping[str, str] | None = None,
) -> Layout:
    """Return the layers of a model, their ties, and the groups of the clipping's scope.

    Args:
        stage: Whether the model is one stage of a pipeline, which is one device.
        kernels, capture, enclosing: As in `find_layers`.

    Raises:
        DpbenchError: The scope cannot group this model, or uses of a tied tensor cannot be bounded separately.
    """
    scope = plugins.get("scope", clipping.scope)
    layers = find_layers(model, kernels, capture, enclosing)
    if scope.extra.get("unit") == "tensor":
        layers = [
            Layer(layer.name, layer.module, layer.leaf.only(n), n.rpartition(".")[2])
            for layer in layers
            for n in layer.parameters
        ]
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
                f"({', '.join(groups[crowded[0]][:3])}, ...) and has no separate bound",
                "use tied: sum, or scope per_layer or per_tensor",
            )
    return Layout(clusters, groups, sizes, shared)


def _size(clusters: list[Cluster]) -> int:
    """Return the number of parameters of all clusters together, with a shared tensor counted once."""
    return sum({id(p): p.numel() for c in clusters for layer in c.layers for p in layer.parameters.values()}.values())


def _families(layers: list[Layer]) -> list[list[Layer]]:
    """Return the layers in families; layers that share a parameter tensor are in one."""
    families: dict[int, list[Layer]] = {}  # by the family's number
    family_of: dict[int, int] = {}  # family's number by a tensor's id
    for number, layer in enumerate(layers):
        tensors = [id(p) for p in layer.parameters.values()]
        touched = sorted({family_of[tensor] for tensor in tensors if tensor in family_of})
        merged = [other for family in touched for other in families.pop(family)] + [layer]
        families[number] = merged
        family_of.update((id(p), number) for other in (merged if touched else [layer]) for p in other.parameters.values())
    return list(families.values())

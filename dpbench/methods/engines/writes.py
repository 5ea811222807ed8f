"""The check that a forward pass does not write into the model, which would then hold private data that no noise protects."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dpbench.errors import DpbenchError

_EVERY = 8  # values are compared in the 1st, 8th, 64th, ... use
_PIECE = 1 << 16  # words fingerprinted at once, so that their products stay in the cache
_TURN = 0x2545F4914F6CDD1D  # odd, so that pieces that are exchanged are noticed
_DEEPEST = 4  # levels of nested containers that are searched
_CONTAINERS = (list, tuple, set, frozenset, deque, dict)
_PLAIN = (Tensor, nn.Parameter)
_OF_MODULES = frozenset(vars(nn.Module()))  # the attributes of every module, whose tensors are read separately

_CACHES = "a cache that no example decides is filled by one forward pass over placeholder inputs before training begins"


class _State(NamedTuple):
    """A tensor at one time. `mark` changes with most writes and costs nothing; `fingerprint` is that of its bytes, or None."""

    tensor: Tensor
    mark: tuple[object, ...]
    fingerprint: int | None


class StateWatch:
    """Checks that the code inside `with watch:` writes into no tensor of the model. A method keeps it from step to step.

    The tensors are all parameters, buffers and tensors among the modules' plain attributes (also in lists, tuples, sets, dicts
    and dataclasses), including new ones. In the 1st, 8th, 64th, ... use they are compared by value, which also notices writes
    through `.data` and costs two passes over the weights; in all others by identity, storage and version, which costs a walk over
    the modules. A tensor that is written with the values it had before counts as not written.

    Counters such as `num_batches_tracked` are included: the number of forward passes reveals how many examples Poisson sampling
    drew. Tensors without readable values (meta, fake and sparse ones) are compared by the other properties. Of sharded parameters
    only this process' part is compared, and not while they are gathered. Python numbers and tensors outside the model are not
    checked.

    Guarantee: it only reads the model, and draws no random number.

    Raises:
        DpbenchError: A tensor was written, replaced or added. The message names it. It is not raised on top of an error inside
            the block.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._uses, self._next = 0, 1
        self._rewritten: set[str] = set()
        self._before: dict[str, _State] = {}
        self._structure: _Structure | None = None
        self._by_value = False

    def __enter__(self) -> StateWatch:
        self._uses += 1
        self._by_value = self._uses >= self._next
        if self._by_value:
            self._next = self._uses * _EVERY
        structure = self._structure
        if structure is None or self._by_value or structure.changed():
            self._structure = structure = _Structure(self._model)
        self._before = self._states(structure)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        before, self._before = self._before, {}
        if kind is None and self._structure is not None:
            if self._by_value or self._structure.changed():
                self._structure = _Structure(self._model)
            self._compare(before, self._states(self._structure))

    def _states(self, structure: _Structure) -> dict[str, _State]:
        tensors = structure.tensors()
        if not (self._by_value or self._rewritten):
            return {name: _State(tensor, _mark(tensor), None) for name, tensor in tensors.items()}
        chosen = {name: t for name, t in tensors.items() if self._by_value or name in self._rewritten}
        fingerprints = _fingerprints(list({id(t): t for t in chosen.values()}.values()))
        return {n: _State(t, _mark(t), fingerprints.get(id(t)) if n in chosen else None) for n, t in tensors.items()}

    def _compare(self, before: dict[str, _State], after: dict[str, _State]) -> None:
        for name, now in after.items():
            was = before.get(name)
            if was is None:
                raise DpbenchError(
                    f"{name} was put into the model by the forward pass: without noise, it would reveal private data",
                    f"return it instead of keeping it; {_CACHES}",
                )
            if _is_sharded(was.tensor) != _is_sharded(now.tensor):
                continue  # gathered, or sharded again
            if was.tensor is now.tensor and was.mark == now.mark and was.fingerprint == now.fingerprint:
                continue
            if was.fingerprint is not None and was.fingerprint == now.fingerprint:
                self._rewritten.add(name)
                continue
            if was.tensor.is_meta and now.tensor.is_meta and was.tensor.shape == now.tensor.shape:
                continue  # weights that are on the device for the pass only
            raise DpbenchError(
                f"{name} was written by the forward pass: without noise, it would reveal private data", _way_out(name)
            )


def _way_out(name: str) -> str:
    last = name.rpartition(".")[2]
    if last in ("running_mean", "running_var", "num_batches_tracked"):
        return "put the layer into eval mode, or use one without running statistics, such as GroupNorm or LayerNorm"
    return (
        "put what writes it into eval mode, or leave it out: running statistics, codebooks, max_norm, data-dependent "
        f"initialisation and memories are of this kind; {_CACHES}"
    )


def check_no_known_writer(model: nn.Module) -> None:
    """Refuse the modules of torch that write into themselves in a forward pass, before there is any data.

    Raises:
        DpbenchError: There are running statistics or spectral norm in training mode, or an embedding with max_norm. The message
            names the module.
    """
    for name, module in model.named_modules():
        what = None
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            what, hint = "renormalises its weight", "leave max_norm out"
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.training and module.track_running_stats:
            what = "keeps statistics of the examples"
            hint = "put it into eval mode, or use track_running_stats=False, GroupNorm or LayerNorm"
        elif module.training and _iterates_for_spectral_norm(module):
            what, hint = "moves the vectors of its power iteration", "put it into eval mode, or leave spectral norm out"
        if what is not None:
            raise DpbenchError(
                f"{name or '(model)'} ({type(module).__name__}) {what} in every forward pass: without noise, "
                "it would reveal private data",
                hint,
            )


def _iterates_for_spectral_norm(module: nn.Module) -> bool:
    from torch.nn.utils.parametrizations import _SpectralNorm

    return isinstance(module, _SpectralNorm) or any(isinstance(h, SpectralNorm) for h in module._forward_pre_hooks.values())


class _Structure:
    """The places of a model's tensors by dotted name, from a walk over all modules; it is reused until something changes."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.named_modules())
        self._forms = self._form()
        self._slots: list[tuple[str, Any, str]] = []  # name, the dict that holds the tensor, its key there
        self._holders: list[tuple[str, dict[str, Any], str]] = []  # the same for containers
        for path, module in self._modules:
            prefix, recomputed = f"{path}." if path else "", _recomputed(module)
            places: list[Any] = [module._parameters, module._buffers]
            self._slots += [
                (f"{prefix}{key}", container, key)
                for container in places
                for key, value in container.items()
                if value is not None
            ]
            for key, value in (attributes := vars(module)).items():
                if key in _OF_MODULES or key in recomputed:
                    continue
                if isinstance(value, Tensor):
                    self._slots.append((f"{prefix}{key}", attributes, key))
                elif isinstance(value, _CONTAINERS) or _inside("", value, _DEEPEST):
                    self._holders.append((f"{prefix}{key}", attributes, key))

    def changed(self) -> bool:
        """Return whether a module, a tensor or an attribute was added, removed or replaced by one of another type."""
        return self._form() != self._forms

    def _form(self) -> list[tuple[object, ...]]:
        return [
            (
                *map(id, module._modules.values()),
                *map(type, module._parameters.values()),
                *map(type, module._buffers.values()),
                *map(type, vars(module).values()),
            )
            for _, module in self._modules
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are at these places now."""
        tensors = {name: container[key] for name, container, key in self._slots if key in container}
        for name, container, key in self._holders:
            tensors |= _inside(name, container.get(key), _DEEPEST)
        return tensors


def _inside(name: str, value: object, depth: int) -> dict[str, Tensor]:
    """Return the tensors of a plain attribute: by its name for a single one, else by the name with the keys appended."""
    if isinstance(value, Tensor):
        return {name: value}
    if depth == 0 or isinstance(value, str | int | float | nn.Module | type(None)):
        return {}
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, _CONTAINERS):
        pairs = enumerate(value)
    elif isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        pairs = getattr(value, "__dict__", {}).items()
    else:
        return {}
    tensors: dict[str, Tensor] = {}
    for key, item in list(pairs):
        if not isinstance(item, str | int | float):
            tensors |= _inside(f"{name}.{key}", item, depth - 1)
    return tensors


def _recomputed(module: nn.Module) -> set[str]:
    """Return the names of attributes that torch computes again from the parameters before every call."""
    if isinstance(module, nn.RNNBase):
        return {"_flat_weights"}
    hooks = module._forward_pre_hooks.values()
    names = {hook.name for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)}
    return names | {str(hook._tensor_name) for hook in hooks if isinstance(hook, BasePruningMethod)}


def _is_sharded(tensor: Tensor) -> bool:
    """Return whether it is a DTensor, without importing the module of DTensor, which takes half a second."""
    return hasattr(tensor, "_local_tensor")


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors inside an instance of a subclass; of a sharded one this process' part."""
    if _is_sharded(tensor):
        return _parts(tensor._local_tensor)  # type: ignore[attr-defined]
    if isinstance(tensor, FakeTensor) or not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _mark(tensor: Tensor) -> tuple[object, ...]:
    """Return a value that changes with the tensor's storage and form, and with writes that autograd would notice."""
    plain = type(tensor) in _PLAIN and tensor.layout == torch.strided and not tensor.is_inference()
    if plain and _has_storage(tensor):
        return tensor._version, tensor.data_ptr(), tensor.dtype
    forms: list[object] = []
    for part in _parts(tensor):
        form: tuple[object, ...] = (part.dtype, part.device)
        if not nn.parameter.is_lazy(part):
            form += (tuple(part.shape), None if part.is_inference() else part._version)
            if part.layout == torch.strided and _has_storage(part):
                form += (part.stride(), part.data_ptr())
        forms.append(form)
    return tuple(forms)


def _has_storage(part: Tensor) -> bool:
    """Return whether a plain tensor has bytes: one that torch.func left in the model has none."""
    return not (part.is_meta or isinstance(part, FakeTensor) or is_functorch_wrapped_tensor(part))


def _fingerprints(tensors: Sequence[Tensor]) -> dict[int, int]:
    """Return by id a 64-bit hash of the tensor's bytes, dtypes and shapes; none for a tensor whose bytes cannot be read."""
    sums: dict[int, list[Tensor | int]] = {}
    for tensor in tensors:
        values = [_fingerprint(part.detach()) if _has_storage(part) else None for part in _parts(tensor)]
        if None not in values:
            sums[id(tensor)] = [value for value in values if value is not None]
    waiting = [value for values in sums.values() for value in values if isinstance(value, Tensor)]
    for device in {value.device for value in waiting}:  # one wait for each device
        torch.stack([value for value in waiting if value.device == device]).cpu()
    forms = {id(t): tuple((part.dtype, tuple(part.shape)) for part in _parts(t)) for t in tensors if id(t) in sums}
    return {key: hash((forms[key], *map(int, values))) for key, values in sums.items()}


def _fingerprint(tensor: Tensor) -> Tensor | int | None:
    """Return the sum of w_i x (word i), modulo 2^64, over the words of a tensor's memory.

    It is a scalar tensor on devices other than the CPU. The w_i are odd and otherwise random, so that one changed word always
    changes the sum, and several almost always.
    """
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or isinstance(tensor, FakeTensor) or tensor.layout != torch.strided:
        return None
    try:
        values = tensor.int_repr() if tensor.is_quantized else tensor
        extent = 1 + sum((n - 1) * stride for n, stride in zip(values.shape, values.stride(), strict=True))
        count = extent if values.numel() else 0
        flat = values.resolve_conj().as_strided((count,), (1,), values.storage_offset()).view(torch.uint8)
        return _on_host(flat.numpy()) if flat.device.type == "cpu" else _on_device(flat)
    except (RuntimeError, NotImplementedError):
        return None


def _on_host(flat: np.ndarray[Any, Any]) -> int:
    """Return the sum over bytes [n], by numpy, so that code that counts a step's tensors does not count these."""
    in_words, total = len(flat) // 8 * 8, 0
    words = flat[:in_words].view(np.int64)
    products = np.empty(min(len(words), _PIECE), np.int64)
    with np.errstate(over="ignore"):
        for first in range(0, len(words), _PIECE):
            piece = words[first : first + _PIECE]
            each = np.multiply(piece, _factors()[: len(piece)], out=products[: len(piece)])
            total = (total * _TURN + int(each.sum())) % 2**64
    for last in flat[in_words:].tolist():
        total = (total * _TURN + last) % 2**64
    return total


def _on_device(flat: Tensor) -> Tensor:
    factors, total = _factors_on(flat.device), torch.zeros((), dtype=torch.int64, device=flat.device)
    in_words = len(flat) // 8 * 8 if flat.storage_offset() % 8 == 0 else 0
    words = flat[:in_words].view(torch.int64).split(_PIECE) if in_words else ()
    for piece in (*words, *flat[in_words:].split(_PIECE)):
        total = total * _TURN + (piece * factors[: len(piece)]).sum()
    return total


@cache
def _factors() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(-(2**63), 2**63, _PIECE, dtype=np.int64) | 1


@cache
def _factors_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_factors()).to(device)

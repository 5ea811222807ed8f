"""Read checkpoints: the config of the right architecture, and tensors under the names of our modules, none of them missing.

`from_pretrained` of transformers is not used, because it initialises at random what a checkpoint lacks and only warns of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench.errors import DpbenchError
from dpbench.files import read_json
from dpbench.models import sources

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dpbench.plugins import Plugin
    from dpbench.spec.sources import Source

_AGAIN = "fetch the model again, or write its folder again"
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # of LayerNorm, in checkpoints converted from TensorFlow


def load(
    module: nn.Module,
    plugin: Plugin,
    source: Source,
    prefixes: tuple[str, ...],
    renamed: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    assign: bool = False,
) -> None:
    """Load the published weights of a model into a bare module without heads; heads, pooler and cut layers are left out.

    Args:
        prefixes: beginnings of names in checkpoints of models with heads, in their order.
        renamed: parts of names in the checkpoint -> parts of ours, beside those of the plug-in. A tensor that the plug-in
            declares `absent` is zero where the checkpoint lacks it.
        dtype: the type of the weights; None means fp32.
        assign: whether the tensors replace the module's, which may be on the meta device.

    Raises:
        DpbenchError: the files are gone, changed, damaged or of another architecture.
    """
    _check_config(sources.file_of(plugin, source, sources.CONFIG), plugin.extra["architecture"], plugin.name)
    path = sources.file_of(plugin, source, sources.WEIGHTS)
    state = module.state_dict()
    names = plugin.extra.get("renamed", {}) | dict(renamed or {})
    tensors = _named(path, state, prefixes, names, dtype)
    absent = [key for key in plugin.extra.get("absent", ()) if key in state and key not in tensors]
    tensors |= {key: state[key].new_zeros(state[key].shape) for key in absent}
    if missing := sorted(set(state) - set(tensors)):
        raise DpbenchError(f"{path}: lacks {len(missing)} tensors, first {missing[0]}", _AGAIN)
    for key, value in tensors.items():
        if value.shape != state[key].shape:
            what = f"{path}: {key} has shape {list(value.shape)}, {plugin.name} needs {list(state[key].shape)}"
            raise DpbenchError(what, f"put the weights of {plugin.name} there")
    module.load_state_dict(tensors, assign=assign)


def tensors_of(path: Path, names: set[str]) -> dict[str, torch.Tensor]:
    """Return tensors of a checkpoint under its names, in fp32.

    Raises:
        DpbenchError: the file is not readable, or lacks one of the tensors.
    """
    tensors = _named(path, names)
    if missing := sorted(names - set(tensors)):
        raise DpbenchError(f"{path}: lacks {missing[0]}", "take the masked language model's checkpoint, or another head")
    return tensors


def _check_config(path: Path, architecture: dict[str, Any], name: str) -> None:
    """Refuse the config of another architecture. Some settings, such as the number of heads, do not change any shape."""
    config = read_json(path, hint=_AGAIN)
    if not isinstance(config, dict):
        raise DpbenchError(f"{path}: holds no object of settings, but {type(config).__name__}", _AGAIN)
    for key, value in architecture.items():
        if key in config and config[key] != value:
            raise DpbenchError(f"{path}: {key} is {config[key]}, but {name} has {value}", f"put the weights of {name} there")


def _named(
    path: Path,
    names: Collection[str],
    prefixes: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, torch.Tensor]:
    """Return those of the named tensors that a checkpoint has, under their names without the prefixes."""
    import torch
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                plain = key
                for part, replacement in (renamed or {}).items():
                    plain = plain.replace(part, replacement)
                for prefix in prefixes:
                    plain = plain.removeprefix(prefix)
                stem, _, last = plain.rpartition(".")
                name = f"{stem}.{_OLD_NAMES.get(last, last)}"
                if name in names:
                    tensors[name] = file.get_tensor(key).to(dtype or torch.float32)
    except (OSError, SafetensorError) as error:
        raise DpbenchError(f"{path}: not a readable safetensors file ({error})", _AGAIN) from error
    return tensors

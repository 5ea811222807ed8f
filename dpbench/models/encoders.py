"""BERT and RoBERTa encoders, with real or random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.files import read_json
from dpbench.models import sources
from dpbench.plugins import Plugin
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    import torch

    from dpbench.models.wrappers import Encoder

OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # of LayerNorm, in checkpoints converted from TensorFlow


def check_config(path: Path, architecture: dict[str, Any], name: str) -> None:
    """Refuse the config of another architecture. Some settings, such as the number of heads, do not change any shape."""
    config = read_json(path, hint="fetch the model again")
    if not isinstance(config, dict):
        raise DpbenchError(f"{path}: holds no object of settings, but {type(config).__name__}", "fetch the model again")
    for key, value in architecture.items():
        if key in config and config[key] != value:
            raise DpbenchError(f"{path}: {key} is {config[key]}, but {name} has {value}", f"put the weights of {name} there")


def checkpoint(
    path: Path, family: str, names: set[str], renamed: dict[str, str] | None = None, absent: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint under the names of the bare model; heads, pooler and cut layers are left out.

    Args:
        names: the names of the tensors in the model.
        renamed: parts of names in checkpoints of another architecture -> parts of ours.
        absent: names that such a checkpoint may lack.

    Raises:
        DpbenchError: the file is not readable, or lacks tensors.
    """
    tensors = _named(path, names, f"{family}.", renamed)
    if missing := sorted(names - set(tensors) - set(absent)):
        raise DpbenchError(f"{path}: lacks {len(missing)} tensors, first {missing[0]}", "fetch the model again")
    return tensors


def tensors_of(path: Path, names: set[str]) -> dict[str, torch.Tensor]:
    """Return tensors of a checkpoint under its names, in fp32.

    Raises:
        DpbenchError: the file is not readable, or lacks one of the tensors.
    """
    tensors = _named(path, names)
    if missing := sorted(names - set(tensors)):
        raise DpbenchError(f"{path}: lacks {missing[0]}", "take the masked language model's checkpoint, or another head")
    return tensors


def _named(path: Path, names: set[str], prefix: str = "", renamed: dict[str, str] | None = None) -> dict[str, torch.Tensor]:
    """Return those of the named tensors that a checkpoint has, in fp32, under their names without the prefix."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                plain = key
                for theirs, ours in (renamed or {}).items():
                    plain = plain.replace(theirs, ours)
                stem, _, last = plain.removeprefix(prefix).rpartition(".")
                name = f"{stem}.{OLD_NAMES.get(last, last)}"
                if name in names:
                    tensors[name] = file.get_tensor(key).float()
    except (OSError, SafetensorError) as error:
        raise DpbenchError(f"{path}: not a readable safetensors file ({error})", "fetch the model again") from error
    return tensors


def _architecture(plugin: Plugin, layers: int | None) -> dict[str, Any]:
    if plugin.extra["family"] not in ("bert", "roberta"):
        raise DpbenchError(f"model {plugin.name} is not an encoder", "use language_model for the GPT-2 and Llama families")
    architecture = dict(plugin.extra["architecture"])
    depth = architecture["num_hidden_layers"]
    if layers is not None:
        if not 1 <= layers <= depth:
            raise DpbenchError(
                f"model {plugin.name}: layers {layers} is out of range", f"it has {depth} layers; take 1 to {depth}"
            )
        architecture["num_hidden_layers"] = layers
    return architecture


def encoder(name: str, source: Source, layers: int | None = None, seed: int = 0, meta: bool = False) -> Encoder:
    """Build an encoder in fp32, without dropout: `forward(input_ids [B, T], attention_mask [B, T]) -> [B, T, H]`, `.width` = H.

    Args:
        source: the source of the weights, from `resolve`.
        layers: the number of first layers to keep; None keeps all.
        seed: the seed of random weights (kind `scratch`); torch's global generator does not change.
        meta: whether to build on the meta device, without reading any file.

    Raises:
        DpbenchError: the model is not an encoder; `layers` is out of range; the weights are gone, changed, damaged or of another
            architecture.
    """
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    from dpbench.models.seeded import build
    from dpbench.models.wrappers import Encoder

    plugin = plugins.get("model", name)
    architecture = _architecture(plugin, layers)
    roberta = plugin.extra["family"] == "roberta"

    def make() -> BertModel | RobertaModel:
        config = (RobertaConfig if roberta else BertConfig)(
            **architecture, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa", use_cache=False
        )
        return (RobertaModel if roberta else BertModel)(config, add_pooling_layer=False)

    model = build(make, seed, meta)
    if source.kind != "scratch" and not meta:
        check_config(sources.file_of(plugin, source, sources.CONFIG), plugin.extra["architecture"], name)
        path = sources.file_of(plugin, source, sources.WEIGHTS)
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        absent = tuple(plugin.extra.get("absent", ()))
        tensors = checkpoint(path, plugin.extra["family"], set(shapes), plugin.extra.get("renamed"), absent)
        for key, value in tensors.items():
            if list(value.shape) != shapes[key]:
                what = f"{path}: {key} has shape {list(value.shape)}, {name} needs {shapes[key]}"
                raise DpbenchError(what, f"put the weights of {name} there")
        zeros = {key: value.new_zeros(value.shape) for key, value in model.state_dict().items() if key in absent}
        model.load_state_dict(zeros | tensors)
    return Encoder(model)

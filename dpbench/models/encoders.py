"""BERT and RoBERTa encoders, with real or random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.models import checkpoints
from dpbench.plugins import Plugin
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dpbench.models.wrappers import Encoder


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
    from transformers import AutoConfig, AutoModel

    from dpbench.models.seeded import build
    from dpbench.models.wrappers import Encoder

    plugin = plugins.get("model", name)
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "use_cache": False}
    config = AutoConfig.for_model(plugin.extra["family"], **_architecture(plugin, layers), **options)

    def make() -> PreTrainedModel:
        model: PreTrainedModel = AutoModel.from_config(config, add_pooling_layer=False, attn_implementation="sdpa")
        return model

    model = build(make, seed, meta)
    if source.kind != "scratch" and not meta:
        checkpoints.load(model, plugin, source, (f"{plugin.extra['family']}.",))
    return Encoder(model)

"""Language models of the GPT-2, Llama and OPT families from scratch, and their per-example losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from transformers import PreTrainedModel

    from dpbench.models.wrappers import LanguageModel


def language_model_family(size: str) -> str:
    """Return the name of the model plug-in that has this size.

    Raises:
        DpbenchError: there is no such size; the error names the nearest.
    """
    families = {
        size_name: plugin.name for plugin in plugins.discover("model").values() for size_name in plugin.extra.get("sizes", ())
    }
    if size not in families:
        raise unknown("size", size, families, "language models")
    return families[size]


def language_model_size(size: str) -> dict[str, int]:
    """Return layers, width, heads, vocabulary, context of a size; for Llama and OPT also hidden, the width inside a block's MLP.

    Raises:
        DpbenchError: there is no such size; the error names the nearest.
    """
    return dict(plugins.get("model", language_model_family(size)).extra["sizes"][size])


def language_model(
    size: str,
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype | None = None,
    meta: bool = False,
    vocabulary: int | None = None,
    context: int | None = None,
    layers: int | None = None,
) -> LanguageModel:
    """Build a GPT-2, Llama or OPT with random weights: `forward(input_ids [B, T]) -> logits [B, T, V]`; `.vocabulary` is V.

    Args:
        seed: the seed of the weights; torch's global generator does not change.
        tied: whether the head is the token embedding.
        dtype: the type of the weights, which are rounded from fp32; None means fp32.
        meta: whether to build on the meta device.
        vocabulary, context, layers: values that replace those of the size.

    Raises:
        DpbenchError: there is no such size.
    """
    from dpbench.models.seeded import build
    from dpbench.models.wrappers import LanguageModel

    shape = language_model_size(size)
    overrides = {"vocabulary": vocabulary, "context": context, "layers": layers}
    shape |= {name: value for name, value in overrides.items() if value is not None}
    family: str = plugins.get("model", language_model_family(size)).extra["family"]
    settings = {key: shape[name] for name, key in _KEYS[family].items()}
    model = LanguageModel(build(lambda: causal_model(family, settings, tied), seed, meta))
    return model if dtype is None else model.to(dtype)


def causal_model(family: str, settings: Mapping[str, Any], tied: bool = False) -> PreTrainedModel:
    """Build transformers' model of a family without dropout, cache and reserved ids, an OPT so that engines support it.

    Args:
        settings: keys of its Hugging Face config.
        tied: whether the head is the token embedding.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpbench.models.wrappers import CAUSAL, served_opt

    options: dict[str, Any] = {"use_cache": False, "tie_word_embeddings": tied, **dict.fromkeys(_DROPOUTS[family], 0.0)}
    options |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "opt":
        options["word_embed_proj_dim"] = settings["hidden_size"]
    config = AutoConfig.for_model(family, **(dict(settings) | options))
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=CAUSAL)
    return served_opt(model) if family == "opt" else model


_BLOCKS = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "vocabulary": "vocab_size"}
_WIDTHS = {"context": "max_position_embeddings", "width": "hidden_size"}
_KEYS = {
    "gpt2": {"context": "n_positions", "width": "n_embd", "layers": "n_layer", "heads": "n_head", "vocabulary": "vocab_size"},
    "llama": {**_BLOCKS, **_WIDTHS, "hidden": "intermediate_size"},
    "opt": {**_BLOCKS, **_WIDTHS, "hidden": "ffn_dim"},
}
"""Family -> what `sizes` calls a setting -> its key in the Hugging Face config."""
_DROPOUTS = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
    "opt": ("dropout", "attention_dropout"),
}
"""Family -> the keys of its config that are shares of dropout."""


def language_model_losses(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean next-token cross entropy of each example, in fp32.

    Args:
        batch: `input_ids` [B, T] with T of 2 or more.

    Returns:
        [B].

    Raises:
        DpbenchError: T is 1, so there is no next token.
    """
    import torch

    ids = batch["input_ids"]
    if ids.shape[1] < 2:
        raise DpbenchError("a language model needs 2 tokens or more an example", "use longer blocks")
    # The last position has no target. Marking it keeps the logits one contiguous block: cutting it off would copy them.
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    losses = torch.nn.functional.cross_entropy(
        model(ids).flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view(ids.shape).sum(1) / (ids.shape[1] - 1)

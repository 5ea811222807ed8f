"""Language models of the GPT-2, Llama and OPT families from scratch, GPT-2 with its weights, and their per-example losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from transformers import PreTrainedModel

    from dpbench.models.wrappers import LanguageModel
    from dpbench.spec.sources import Source


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
    make = {"gpt2": _gpt2, "llama": _llama, "opt": _opt}[language_model_family(size)]
    model = LanguageModel(build(lambda: make(shape, tied), seed, meta))
    return model if dtype is None else model.to(dtype)


def _common(shape: dict[str, int], tied: bool) -> dict[str, Any]:
    """Return the settings that have the same name in the configs of all families."""
    from dpbench.models.wrappers import CAUSAL

    return {
        "vocab_size": shape["vocabulary"],
        "use_cache": False,
        "tie_word_embeddings": tied,
        "attn_implementation": CAUSAL,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _gpt2(shape: dict[str, int], tied: bool) -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        **_common(shape, tied),
        n_positions=shape["context"],
        n_embd=shape["width"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def _llama(shape: dict[str, int], tied: bool) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **_common(shape, tied),
        max_position_embeddings=shape["context"],
        hidden_size=shape["width"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        attention_dropout=0.0,
    )
    return LlamaForCausalLM(config)


def _opt(shape: dict[str, int], tied: bool) -> PreTrainedModel:
    from transformers import OPTConfig, OPTForCausalLM

    from dpbench.models.wrappers import served_opt

    config = OPTConfig(
        **_common(shape, tied),
        max_position_embeddings=shape["context"],
        hidden_size=shape["width"],
        word_embed_proj_dim=shape["width"],
        ffn_dim=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        pad_token_id=None,  # type: ignore[arg-type]  # no id is reserved
        dropout=0.0,
        attention_dropout=0.0,
    )
    return served_opt(OPTForCausalLM(config))


def pretrained_language_model(name: str, source: Source, seed: int = 0, meta: bool = False) -> LanguageModel:
    """Build a GPT-2 with its published weights, in fp32 and without dropout.

    The head starts as a copy of the embedding and is a separate tensor, as in private-transformers.

    Args:
        source: the source from `resolve`; kind `scratch` gives random weights that depend on `seed`.
        meta: whether to build on the meta device, without reading any file.

    Raises:
        DpbenchError: the model is not a GPT-2 with weights; the weights are gone, changed, damaged or of another architecture.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from dpbench.models import sources
    from dpbench.models.encoders import check_config, checkpoint
    from dpbench.models.seeded import build
    from dpbench.models.wrappers import CAUSAL, LanguageModel

    plugin = plugins.get("model", name)
    if plugin.extra["family"] != "gpt2" or "architecture" not in plugin.extra:
        raise DpbenchError(f"model {name} is no language model with published weights", "name a size instead")
    architecture = plugin.extra["architecture"]
    options: dict[str, Any] = {"use_cache": False, "tie_word_embeddings": False, "attn_implementation": CAUSAL}
    options |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    options |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = build(lambda: GPT2LMHeadModel(GPT2Config(**(architecture | options))), seed, meta)
    if source.kind != "scratch" and not meta:
        check_config(sources.file_of(plugin, source, sources.CONFIG), architecture, name)
        path = sources.file_of(plugin, source, sources.WEIGHTS)
        weights = model.transformer.state_dict()
        tensors = checkpoint(path, "transformer", set(weights))
        for key, value in tensors.items():
            if value.shape != weights[key].shape:
                what = f"{path}: {key} has shape {list(value.shape)}, {name} needs {list(weights[key].shape)}"
                raise DpbenchError(what, f"put the weights of {name} there")
        model.transformer.load_state_dict(tensors)
        model.lm_head.load_state_dict({"weight": tensors["wte.weight"]})
    return LanguageModel(model)


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

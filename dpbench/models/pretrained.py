"""Language models with published weights: GPT-2, and OPT, whose weights may stay in half precision.

OPT is published as pickled, often split weights without a `tokenizer.json`. A local folder (`DPBENCH_MODELS/opt-1.3b`) is written
once by transformers: `OPTForCausalLM.from_pretrained(repo, dtype="auto").save_pretrained(folder, max_shard_size="100GB")` and
`AutoTokenizer.from_pretrained(repo).save_pretrained(folder)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.models import language, sources

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import OPTForCausalLM

    from dpbench.models.wrappers import LanguageModel
    from dpbench.plugins import Plugin
    from dpbench.spec.sources import Source

_POSITIONS = "embed_positions.weight"
_OURS = "embed_positions.table.weight"


def pretrained_language_model(
    name: str, source: Source, seed: int = 0, meta: bool = False, dtype: torch.dtype | None = None, tied: bool = False
) -> LanguageModel:
    """Build a GPT-2 or OPT with its published weights, without dropout.

    The head starts as a copy of the embedding and is a separate tensor, as in private-transformers, unless `tied`.

    Args:
        source: the source from `resolve`; kind `scratch` gives random weights that depend on `seed`.
        meta: whether to build on the meta device, without reading any file.
        dtype: the type of the weights; None means fp32. OPT's weights are read directly in this type.
        tied: whether the head is the embedding, as it was published.

    Raises:
        DpbenchError: the model is no language model with weights; the weights are gone, changed, damaged or of another
            architecture.
    """
    plugin = plugins.get("model", name)
    if plugin.extra["family"] == "opt" and "architecture" in plugin.extra:
        model = _opt(plugin, source, seed, meta, dtype)
    else:
        model = language.pretrained_language_model(name, source, seed, meta)
    transformer: Any = model.model
    if tied:
        transformer.lm_head.weight = transformer.get_input_embeddings().weight
    return model if dtype is None else model.to(dtype)


def _opt(plugin: Plugin, source: Source, seed: int, meta: bool, dtype: torch.dtype | None) -> LanguageModel:
    from transformers import OPTConfig, OPTForCausalLM

    from dpbench.models.encoders import check_config
    from dpbench.models.seeded import build
    from dpbench.models.wrappers import CAUSAL, LanguageModel, served_opt

    architecture = plugin.extra["architecture"]
    options: dict[str, Any] = {"use_cache": False, "tie_word_embeddings": False, "attn_implementation": CAUSAL}
    options |= {"dropout": 0.0, "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

    def make() -> OPTForCausalLM:
        return served_opt(OPTForCausalLM(OPTConfig(**(architecture | options))))

    published = source.kind != "scratch" and not meta
    model = build(make, seed, meta or published)  # no random weights that the published ones would replace at once
    if published:
        check_config(sources.file_of(plugin, source, sources.CONFIG), architecture, plugin.name)
        decoder: Any = model.model.decoder
        shapes = {key: list(value.shape) for key, value in decoder.state_dict().items()}
        tensors = _tensors(sources.file_of(plugin, source, sources.WEIGHTS), shapes, plugin.name, dtype)
        decoder.load_state_dict(tensors, assign=True)
        model.lm_head.load_state_dict({"weight": tensors["embed_tokens.weight"].clone()}, assign=True)
    return LanguageModel(model)


def _tensors(path: Path, shapes: dict[str, list[int]], name: str, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors of OPT's decoder under our names; the head, which is the embedding, is left out."""
    import torch
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                stem = key.removeprefix("model.").removeprefix("decoder.")
                stem = _OURS if stem == _POSITIONS else stem
                if stem in shapes:
                    tensors[stem] = file.get_tensor(key).to(dtype or torch.float32)
    except (OSError, SafetensorError) as error:
        raise DpbenchError(f"{path}: not a readable safetensors file ({error})", "write the folder again") from error
    if missing := sorted(set(shapes) - set(tensors)):
        raise DpbenchError(f"{path}: lacks {len(missing)} tensors, first {missing[0]}", "write the folder again")
    for key, value in tensors.items():
        if list(value.shape) != shapes[key]:
            what = f"{path}: {key} has shape {list(value.shape)}, {name} needs {shapes[key]}"
            raise DpbenchError(what, f"put the weights of {name} there")
    return tensors

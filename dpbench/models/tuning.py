"""The trained part of a language model: everything, the last blocks, low-rank adapters, or a prefix of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.models.seeded import build
from dpbench.models.stages import blocks_of, body_of

if TYPE_CHECKING:
    from transformers import DynamicCache

    from dpbench.models.wrappers import LanguageModel


class Prefixed(nn.Module):
    """A frozen language model behind trained keys and values (Li and Liang, ACL 2021) of peft's PrefixEncoder.

    It is decoded like a language model; its real tokens have the positions after the prefix.
    """

    def __init__(self, model: LanguageModel, prefix: nn.Module, length: int) -> None:
        super().__init__()
        self.model, self.prefix, self.length = model.requires_grad_(False), prefix, length

    def start(self, batch: int) -> DynamicCache:
        """Return a cache with the prefix of `batch` examples, before their first token."""
        from transformers import DynamicCache

        device = next(self.prefix.parameters()).device
        tokens = torch.arange(self.length, device=device).expand(batch, -1).contiguous()
        config: Any = self.model.model.config
        keys_and_values = self.prefix(tokens).view(
            batch, self.length, 2 * config.num_hidden_layers, config.num_attention_heads, -1
        )
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(keys_and_values.permute(2, 0, 3, 1, 4).split(2)):
            cache.update(keys, values, layer)
        return cache

    def cached(self, input_ids: Tensor, cache: Any) -> Tensor:
        return self.model.cached(input_ids, cache)

    def forward(self, input_ids: Tensor, first: int = 0) -> Tensor:
        """Map [B, T] token ids to [B, T - first, V] logits of the positions from `first` on."""
        return self.cached(input_ids, self.start(len(input_ids)))[:, first:]


def last_layers(model: LanguageModel, layers: int) -> LanguageModel:
    """Freeze all but the last blocks and the final norm, in place.

    Raises:
        DpbenchError: the model has fewer layers.
    """
    blocks = blocks_of(model)
    if layers > len(blocks):
        raise DpbenchError(f"tuning.layers {layers}: the model has {len(blocks)}", "train fewer, or all of it (mode: full)")
    model.requires_grad_(False)
    body = body_of(model)
    norm = next(getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(body, name))
    for part in (*blocks[-layers:], norm):
        part.requires_grad_(True)
    return model


def lora(model: LanguageModel, rank: int, alpha: float, seed: int, meta: bool) -> LanguageModel:
    """Freeze the model and add peft's low-rank adapters beside the query, key and value products of attention, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    gpt2 = hasattr(body_of(model), "wte")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float does
        lora_dropout=0.0,
        target_modules=["c_attn"] if gpt2 else ["q_proj", "k_proj", "v_proj"],
        fan_in_fan_out=gpt2,
    )
    build(lambda: inject_adapter_in_model(config, model.model), seed, meta)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return model


def encoder_lora(model: nn.Module, rank: int, alpha: float, seed: int, meta: bool) -> nn.Module:
    """Freeze a classifier on a BERT or RoBERTa except its `head`, and add peft's low-rank adapters, in place.

    The adapters are beside the query and value products of attention (Hu et al., ICLR 2022).
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=["query", "value"])  # type: ignore[arg-type]
    build(lambda: inject_adapter_in_model(config, model), seed, meta)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("head."))
    return model


def prefix(model: LanguageModel, length: int, width: int | None, seed: int, meta: bool) -> Prefixed:
    """Freeze the model behind `length` positions of trained keys and values.

    Args:
        width: the width of the hidden layer that computes them from an embedding; None trains them directly.

    Raises:
        DpbenchError: the model has fewer key heads than query heads.
    """
    from peft import PrefixTuningConfig
    from peft.tuners.prefix_tuning import PrefixEncoder

    config: Any = model.model.config
    if getattr(config, "num_key_value_heads", config.num_attention_heads) != config.num_attention_heads:
        raise DpbenchError("tuning.mode prefix: grouped key heads are not served", "use mode: lora")
    prefix_config = PrefixTuningConfig(
        num_virtual_tokens=length,
        token_dim=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_transformer_submodules=1,
        encoder_hidden_size=width,  # type: ignore[arg-type]
        prefix_projection=width is not None,
    )
    return Prefixed(model, build(lambda: PrefixEncoder(prefix_config), seed, meta), length)

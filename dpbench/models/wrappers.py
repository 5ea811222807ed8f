"""Hugging Face models with every input explicit.

Position and token type ids are contiguous [B, T] (broadcast or absent ones break per-example hooks), and attention masks
never depend on a tensor's values, so that the same model runs under vmap, on fake tensors and on the meta device.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, OPTForCausalLM, PreTrainedModel, RobertaModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from dpbench.errors import DpbenchError

CAUSAL = "dpbench_causal"
# The sdpa of transformers under a name that has no mask function: the mask stays None, and `is_causal` does the work. Under the
# name "sdpa", position ids of [B, T] are searched for packed sequences, which reads their values.
AttentionInterface.register(CAUSAL, sdpa_attention_forward)


class Encoder(torch.nn.Module):
    """A BERT or RoBERTa without its pooler; `width` is H, `context` the longest input in tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        config: Any = model.config
        self.model: Any = model
        self.width: int = config.hidden_size
        roberta = isinstance(model, RobertaModel)
        self.first: int = config.pad_token_id + 1 if roberta else 0
        self.respects_padding = roberta
        self.context: int = config.max_position_embeddings - self.first

    def positions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return [B, T]: 0, 1, ... for BERT; for RoBERTa counted from pad + 1 over real tokens, with pad at padding."""
        if self.respects_padding:
            mask = attention_mask.long()
            return mask.cumsum(1) * mask + (self.first - 1)
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape).contiguous()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map [B, T] token ids and a [B, T] mask (1 real, 0 padding) to [B, T, H].

        Raises:
            DpbenchError: T is longer than the model's positions.
        """
        if input_ids.shape[1] > self.context:
            raise DpbenchError(f"input of {input_ids.shape[1]} tokens, the model takes {self.context}", "lower max_length")
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask.bool()[:, None, None, :],  # transformers does not change a 4-D mask
            token_type_ids=torch.zeros_like(input_ids),
            position_ids=self.positions(input_ids, attention_mask),
        )
        return output.last_hidden_state


def fuse_gelu(model: torch.nn.Module) -> torch.nn.Module:
    """Replace transformers' tanh-GELU of eight operations by torch's, in place: the same function up to rounding.

    In a model of width 128 the eight operations' temporaries cost as much as all its matrix products.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    return model


class OptPositions(torch.nn.Module):
    """OPT's learned positions, whose numbers start at 2, as a plain embedding, whose gradient engines know."""

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.offset = 2
        tokens, width = table.weight.shape
        self.table = torch.nn.Embedding(tokens, width, _weight=table.weight)

    def forward(self, attention_mask: Any, past: int = 0, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Map [B, T] positions from 0 to [B, T, H]; the mask is ignored."""
        assert position_ids is not None
        return self.table(position_ids + self.offset)


class OptBlock(OPTDecoderLayer):
    """OPT's block with the norm before attention and MLP, on [B, T, H] throughout.

    The block of transformers merges B and T before its MLP, so that no layer there could separate examples.
    """

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:  # type: ignore[override]
        """Map [B, T, H] to [B, T, H]; `arguments` are those of transformers' block."""
        attended, _ = self.self_attn(hidden_states=self.self_attn_layer_norm(hidden_states), **arguments)
        hidden_states = hidden_states + attended
        inner = self.activation_fn(self.fc1(self.final_layer_norm(hidden_states)))
        return hidden_states + self.fc2(inner)


def served_opt(model: OPTForCausalLM) -> OPTForCausalLM:
    """Change an OPT so that engines support it, in place: same function and weights, the positions under another name."""
    decoder: Any = model.model.decoder
    decoder.embed_positions = OptPositions(decoder.embed_positions)
    for block in decoder.layers:
        block.__class__ = OptBlock
    return model


class LanguageModel(torch.nn.Module):
    """A GPT-2, Llama or OPT with its head; `vocabulary` is V, `context` the longest input in tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.vocabulary: int = model.config.vocab_size
        self.context: int = model.config.max_position_embeddings

    def forward(self, input_ids: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Map [B, T] token ids to [B, T - first, V] logits of the positions from `first` on.

        Raises:
            DpbenchError: T is longer than the model's positions.
        """
        if input_ids.shape[1] > self.context:
            raise DpbenchError(f"input of {input_ids.shape[1]} tokens, the model takes {self.context}", "use shorter blocks")
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape).contiguous()
        head_arguments = {"logits_to_keep": input_ids.shape[1] - first} if first else {}
        output: Any = self.model(input_ids=input_ids, position_ids=positions, use_cache=False, **head_arguments)
        return output.logits

    def start(self, batch: int) -> DynamicCache:
        """Return an empty cache for `cached`."""
        return DynamicCache()

    def cached(self, input_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Map [B, T] token ids that follow those in `cache` to [B, T, V] logits, and add them to the cache.

        Raises:
            DpbenchError: the cache and T together are longer than the model's positions.
        """
        (batch, tokens), seen = input_ids.shape, int(cache.get_seq_length())
        if seen + tokens > self.context:
            raise DpbenchError(f"input of {seen + tokens} tokens, the model takes {self.context}", "lower max_length")
        positions = torch.arange(seen, seen + tokens, device=input_ids.device).expand(batch, tokens).contiguous()
        mask = None
        if seen and tokens > 1:  # `is_causal` would hide what came before
            mask = torch.ones(tokens, seen + tokens, dtype=torch.bool, device=input_ids.device).tril(seen)
            mask = mask.expand(batch, 1, -1, -1)
        output: Any = self.model(
            input_ids=input_ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        return output.logits

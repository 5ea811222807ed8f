"""GPT-2 language models from scratch, and their per-example losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from dpbench.models.wrappers import LanguageModel


def language_model_size(size: str) -> dict[str, int]:
    """layers, width, heads, vocabulary, context of a size.

    Raises:
        DpbenchError: no such size; names the nearest.
    """
    sizes: dict[str, dict[str, int]] = plugins.get("model", "gpt2").extra["sizes"]
    if size not in sizes:
        raise unknown("size", size, sizes, "model gpt2")
    return dict(sizes[size])


def language_model(
    size: str,
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype | None = None,
    meta: bool = False,
    vocabulary: int | None = None,
    context: int | None = None,
) -> LanguageModel:
    """A GPT-2 with random weights: `forward(input_ids [B, T]) -> logits [B, T, V]`, `.vocabulary` = V, `.context`.

    Args:
        seed: of the weights; torch's global generator is left as it was.
        tied: whether the head is the token embedding.
        dtype: of the weights, rounded from fp32; None: fp32.
        meta: on the meta device.
        vocabulary, context: instead of the size's own.

    Raises:
        DpbenchError: no such size.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from dpbench.models.seeded import build
    from dpbench.models.wrappers import CAUSAL, LanguageModel

    shape = language_model_size(size)
    config = GPT2Config(
        vocab_size=vocabulary or shape["vocabulary"],
        n_positions=context or shape["context"],
        n_embd=shape["width"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        tie_word_embeddings=tied,
        attn_implementation=CAUSAL,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LanguageModel(build(lambda: GPT2LMHeadModel(config), seed, meta))
    return model if dtype is None else model.to(dtype)


def language_model_losses(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Each example's own mean next-token cross entropy, in fp32.

    Args:
        batch: `input_ids` [B, T], T of 2 or more.

    Returns:
        [B].

    Raises:
        DpbenchError: T is 1: there is no next token.
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

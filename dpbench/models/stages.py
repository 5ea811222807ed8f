"""A language model cut into stages for a pipeline: the first has the embedding, the last the head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError

if TYPE_CHECKING:
    from dpbench.models.wrappers import Encoder, LanguageModel


class LanguageStage(nn.Module):
    """A range of the blocks of a GPT-2 or Llama: [B, T] ids or [B, T, H] -> [B, T, H] or [B, T, V] logits.

    Its parameters are the tensors of the model; a block keeps its number, so that no two stages have a parameter of one name.

    Attributes:
        around: makes the context manager of a forward pass, such as autocast.
    """

    def __init__(self, model: LanguageModel, blocks: range, first: bool, last: bool) -> None:
        super().__init__()
        transformer: Any = model.model
        body: Any = transformer.base_model
        llama = hasattr(body, "rotary_emb")
        all_blocks = blocks_of(model)
        self.embedding = (body.embed_tokens if llama else body.wte) if first else None
        self.positions = body.wpe if first and not llama else None
        self.rotary = body.rotary_emb if llama else None
        self.blocks = nn.ModuleDict({str(number): all_blocks[number] for number in blocks})
        self.norm = (body.norm if llama else body.ln_f) if last else None
        self.head = transformer.lm_head if last else None
        self.around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def forward(self, x: Tensor) -> Tensor:
        with self.around():
            return self._through(x)

    def _through(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]).contiguous()
        if self.embedding is not None:
            x = self.embedding(x)
        if self.positions is not None:
            x = x + self.positions(positions)
        rotary_arguments = {} if self.rotary is None else {"position_embeddings": self.rotary(x, position_ids=positions)}
        for block in self.blocks.values():
            x = block(x, position_ids=positions, **rotary_arguments)
        return x if self.head is None or self.norm is None else self.head(self.norm(x))


def blocks_of(model: LanguageModel | Encoder) -> nn.ModuleList:
    """Return the transformer blocks of a GPT-2, Llama or OPT, or of a BERT or RoBERTa, in order."""
    body = body_of(model)
    if hasattr(body, "encoder"):
        return body.encoder.layer
    return body.layers if hasattr(body, "layers") else body.h


def body_of(model: LanguageModel | Encoder) -> Any:
    """Return the part of a model between its token ids and its head."""
    body: Any = model.model.base_model
    return body.decoder if hasattr(body, "decoder") else body


def stage_of(model: LanguageModel, number: int, stages: int) -> LanguageStage:
    """Return stage `number` of `stages`, which are about equal in matrix work; its tensors are the model's.

    Raises:
        DpbenchError: the head is the embedding, which would be in two stages; there are more stages than blocks; the model is an
            OPT.
    """
    transformer: Any = model.model
    embedding, head = transformer.get_input_embeddings().weight, transformer.lm_head.weight
    if stages > 1 and embedding is head:
        raise DpbenchError("the head is tied to the embedding: one tensor would be in two stages", "use tied: false")
    if hasattr(body_of(model), "embed_positions"):
        raise DpbenchError("a pipeline of OPT is not served", "use a GPT-2 or a Llama")
    blocks = blocks_of(model)
    if stages > len(blocks):
        raise DpbenchError(f"{stages} stages for {len(blocks)} blocks", "use fewer processes, or a deeper model")
    ends = boundaries(len(blocks), stages, head.numel() / sum(p.numel() for p in blocks[0].parameters()))
    return LanguageStage(model, range(ends[number], ends[number + 1]), number == 0, number == stages - 1)


def boundaries(blocks: int, stages: int, head: float) -> list[int]:
    """Return the first block of each stage, and the end ([stages + 1]).

    The shares of work are equal, where the head costs as much as `head` blocks. Every stage has a block.
    """
    share = (blocks + head) / stages
    ends = [min(max(round(share * k), k), blocks - (stages - k)) for k in range(stages)]
    return [*ends, blocks]

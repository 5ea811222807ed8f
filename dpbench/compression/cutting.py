"""Taking layers out of an encoder, in place. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError

if TYPE_CHECKING:
    from dpbench.models.wrappers import Encoder


def blocks_of(encoder: Encoder) -> nn.ModuleList:
    """Return the transformer layers of a BERT or RoBERTa, in order."""
    return encoder.model.encoder.layer


def keep_layers(encoder: Encoder, kept: Sequence[int]) -> Encoder:
    """Only these layers, in their order, in place; its config says how many, so that a saved model loads again."""
    blocks = blocks_of(encoder)
    if not kept or any(not 0 <= k < len(blocks) for k in kept):
        raise DpbenchError(f"layers {list(kept)} of a model that has {len(blocks)}", f"take some of 0 to {len(blocks) - 1}")
    encoder.model.encoder.layer = nn.ModuleList(blocks[k] for k in kept)
    encoder.model.config.num_hidden_layers = len(kept)
    return encoder


def smallest_layers(encoder: Encoder, count: int) -> list[int]:
    """Return the numbers of the layers whose weight matrices have the smallest root mean square.

    Guarantee: looks at weights alone: of released ones it is post-processing.
    """

    def size(block: nn.Module) -> float:
        matrices = [p.detach().double() for p in block.parameters() if p.dim() == 2]
        return math.sqrt(sum(float(p.square().sum()) for p in matrices) / sum(p.numel() for p in matrices))

    sizes = [size(block) for block in blocks_of(encoder)]
    return sorted(sorted(range(len(sizes)), key=lambda k: sizes[k])[:count])


def forget(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Remove parameters that left the model from the optimizer, with their state; the others keep theirs."""
    present = {id(p) for p in model.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) in present]
    for parameter in [p for p in optimizer.state if id(p) not in present]:
        del optimizer.state[parameter]


def sizes_of(model: nn.Module) -> tuple[int, int]:
    """Return a model's number of parameters, and of those that are not zero."""
    tensors: list[Tensor] = [p.detach() for p in model.parameters()]
    return sum(t.numel() for t in tensors), sum(int(t.count_nonzero()) for t in tensors)

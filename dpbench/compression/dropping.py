"""Taking layers out of an encoder, in place, at once or between the phases of training. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dpbench.compression.parts import Drop, drop_order, layer_map
from dpbench.errors import DpbenchError
from dpbench.models.stages import blocks_of
from dpbench.models.wrappers import Encoder
from dpbench.training.trainer import Callback, Trainer


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


class LayerDropping(Callback):
    """Structured DPIMP: after each phase but the last, layers leave the encoder; the optimizer keeps the others' state.

    dropped: numbers in the full model, after each phase; kept: those that are left.

    Guarantee: what is dropped is decided on released weights, or on none: it costs no privacy.
    """

    def __init__(self, drop: Drop, encoder: Encoder, depth: int) -> None:
        self._drop, self._encoder = drop, encoder
        self._blocks = drop.blocks(depth)
        self._order = drop_order(layer_map(drop.layer_map, drop.layers, depth), depth, drop.first)
        self.kept = list(range(depth))
        self.dropped: list[list[int]] = []

    def phase_steps(self, steps: int) -> list[int]:
        """Return the steps of each phase of a run of so many steps."""
        lengths = [self._drop.block_steps] * len(self._blocks)
        return [*lengths, steps - sum(lengths)]

    def facts(self, steps: int) -> dict[str, Any]:
        """Return for the record which layers were dropped, and when."""
        return {"dropped": self.dropped, "kept": self.kept, "phases": self.phase_steps(steps)}

    def phase_done(self, trainer: Trainer, number: int) -> None:
        if number >= len(self._blocks):
            return
        count = self._blocks[number]
        if self._drop.choose == "weights":
            leaving = [self.kept[k] for k in smallest_layers(self._encoder, count)]
        else:
            leaving, self._order = self._order[:count], self._order[count:]
        keep_layers(self._encoder, [at for at, layer in enumerate(self.kept) if layer not in leaving])
        self.kept = [layer for layer in self.kept if layer not in leaving]
        forget(trainer.optimizer, trainer.model)
        self.dropped.append(leaving)

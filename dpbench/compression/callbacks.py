"""Compression while training: layers dropped between phases, weights pruned between steps."""

from __future__ import annotations

from typing import Any

from torch import nn

from dpbench.compression.cutting import forget, keep_layers, smallest_layers
from dpbench.compression.parts import Drop, Prune, drop_order, layer_map
from dpbench.compression.pruning import Masks, start_of
from dpbench.models.wrappers import Encoder
from dpbench.training.trainer import Callback, Trainer


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


class MagnitudePruning(Callback):
    """Unstructured DPIMP: the smallest weights become zero for good, then the others go back to their start.

    sparsities: share of the prunable weights that is zero, after each step; masks: which.

    Guarantee: what is pruned is decided on released weights: it costs no privacy.
    """

    def __init__(self, prune: Prune, model: nn.Module, encoder: Encoder) -> None:
        self._prune = prune
        self._rewound = model if prune.rewind == "all" else encoder
        self._start = start_of(self._rewound)
        self.masks = Masks(encoder, prune.scope)
        self.sparsities: list[float] = []

    def steps_of_schedule(self, step: int, steps: int) -> tuple[int, int]:
        """Return (step, steps) of the learning rate's schedule, which starts anew for the sparse model."""
        sparse = self._prune.steps
        return (step, sparse) if step < sparse else (step - sparse, steps - sparse)

    def facts(self, steps: int) -> dict[str, Any]:
        """Return for the record how much was pruned, and when."""
        return {
            "sparsity": self.sparsities[-1],
            "sparsities": self.sparsities,
            "prunable_weights": self.masks.size,
            "phases": [self._prune.steps, steps - self._prune.steps],
        }

    def gradients_released(self, trainer: Trainer) -> None:
        self.masks.zero_gradients_()

    def step_done(self, trainer: Trainer) -> None:
        done, prune = trainer.done, self._prune
        sparsity = prune.sparsity_after(done)
        if done <= prune.steps and done % prune.every == 0:
            self.masks.prune_(sparsity)
            self.masks.zero_state_(trainer.optimizer)
        if done == prune.steps and prune.rewind != "none":
            self._rewound.load_state_dict(self._start, strict=False)
            self.masks.apply_()
            trainer.optimizer.state.clear()
        self.sparsities.append(self.masks.check(sparsity))

"""Magnitude pruning while training: masks on a model's weights, kept exact under privacy. Imports torch."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpbench.compression.parts import Prune
from dpbench.errors import DpbenchError
from dpbench.models.wrappers import Encoder
from dpbench.training.trainer import Callback, Trainer

SLACK = 0.001
"""How far a model's sparsity may be from what it should be."""


def prunable(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the weight matrices of the transformer layers by name: no embeddings, no LayerNorm, no biases, no head."""
    return {
        f"{name}.weight": module.weight
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in f".{name}."
    }


class Masks:
    """Which weights are zero for good.

    Guarantee: masks depend on released weights alone, so they are post-processing; a masked weight gets no gradient, no noise
    and no state of the optimizer, and stays exactly 0. (Its gradient still counts in an example's norm: the engine clips before.)

    Raises:
        DpbenchError: nothing to prune.
    """

    def __init__(self, encoder: nn.Module, scope: Literal["global", "tensor"] = "global") -> None:
        self.weights, self.scope = prunable(encoder), scope
        if not self.weights:
            raise DpbenchError("the encoder has no weight matrices to prune", "prune a BERT or RoBERTa")
        self.masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self.weights.items()}

    @property
    def size(self) -> int:
        """Prunable weights."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is masked."""
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / self.size

    def prune_(self, sparsity: float) -> None:
        """Mask the smallest weights until exactly round(sparsity x size) are; those masked before stay so.

        Raises:
            DpbenchError: more are masked already.
        """
        together = [list(self.weights)] if self.scope == "global" else [[name] for name in self.weights]
        with torch.no_grad():
            for names in together:
                values = torch.cat([self._sizes(name) for name in names])
                gone = round(sparsity * values.numel())
                if gone < int((values < 0).sum()):
                    raise DpbenchError(f"sparsity {sparsity:g} is below what is masked already", "let it only grow")
                keep = _largest(values, values.numel() - gone)
                for name, part in zip(names, keep.split([self.masks[n].numel() for n in names]), strict=True):
                    self.masks[name] = part.view_as(self.masks[name]).to(self.masks[name].device)
        self.apply_()

    def _sizes(self, name: str) -> Tensor:
        """|w| of one tensor, -1 where it is masked: those go first."""
        return self.weights[name].detach().abs().masked_fill(~self.masks[name], -1.0).reshape(-1).cpu()

    def apply_(self) -> None:
        """Masked weights become 0."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.mul_(self.masks[name])

    def zero_gradients_(self) -> None:
        """Set the released gradient of masked weights, noise included, to 0, so that the optimizer never sees it."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self.masks[name])

    def zero_state_(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the optimizer's state of masked weights to 0."""
        for name, weight in self.weights.items():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(self.masks[name])

    def check(self, sparsity: float) -> float:
        """Return the masks' sparsity, once it is as asked.

        Raises:
            DpbenchError: It is not `sparsity` within the slack, or a masked weight is not 0.
        """
        reached = self.sparsity
        if abs(reached - sparsity) > SLACK:
            raise DpbenchError(
                f"sparsity {reached:.4f}, where {sparsity:.4f} was asked for", "report this: it is a fault of pruning"
            )
        for name, weight in self.weights.items():
            if bool(weight.detach().masked_fill(self.masks[name], 0.0).any()):
                raise DpbenchError(f"{name}: a masked weight is not 0", "report this: it is a fault of pruning")
        return reached


def start_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's trainable parameters, to go back to by `load_state_dict`."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def _largest(values: Tensor, count: int) -> Tensor:
    """Return a mask [N] of exactly the `count` largest; of equal ones the first."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = values.kthvalue(values.numel() - count + 1).values
    keep, ties = values > limit, values == limit
    return keep | (ties & (ties.cumsum(0) <= count - int(keep.sum())))


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

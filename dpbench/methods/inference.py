"""Inference alone, the lower limit of the cost of any method: it can be timed, and trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dpbench.methods.engines.batches import Batch, Losses
from dpbench.methods.engines.thresholds import Thresholds
from dpbench.methods.protocol import StepReport


class InferenceOnly:
    """A method that makes one forward pass for each batch, and nothing else."""

    in_training_mode = True
    thresholds: Thresholds | None = None
    unprotected: list[str] = []  # noqa: RUF012 (nothing is released)
    sensitivity, groups = 0.0, 0

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trainable: dict[str, nn.Parameter] = {}

    def backward(self, losses: Losses, batch: Batch) -> None:
        with torch.inference_mode():
            losses(self.model, batch)

    def step(self) -> StepReport:
        return StepReport(0, None)

    def before_release(self, check: Callable[[int], None]) -> None:
        """Do nothing, as nothing is released."""

    def warnings(self) -> list[str]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, as there is no state."""

    def detach(self) -> None:
        """Do nothing, as nothing is attached to the model."""

"""A model, an optimizer and a batch, on which methods are timed one after another. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dpbench import methods
from dpbench.measure.rounds import wait_for
from dpbench.methods import timing
from dpbench.methods.engines.batches import Losses
from dpbench.methods.protocol import Method
from dpbench.models import registry as models

if TYPE_CHECKING:
    from dpbench.measure.config import ThroughputSettings

DTYPES = {"float32": torch.float32, "amp": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Bench:
    """Model, losses, optimizer and batches of a timed step; methods are attached to it one after another."""

    def __init__(self, settings: ThroughputSettings, ids: np.ndarray, seed: int, meta: bool = False) -> None:
        self.settings = settings
        self.device = torch.device("meta" if meta else settings.device)
        self.losses = _losses(settings, self.device.type)
        self.model = _model(settings, seed, meta).to(self.device)
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
        parts = torch.as_tensor(ids).to(self.device).split(settings.micro_batch or settings.batch_size)
        self.batches = [{"input_ids": part} for part in parts]

    def attach(self, name: str) -> Method:
        """Attach a method to the model."""
        optimizer = timing.optimizer_of(name, list(self.model.parameters()), self.optimizer)
        return methods.attach(name, self.model, optimizer, self.settings.mechanism(name), kernels=self.settings.kernels)

    def step(self, method: Method) -> None:
        """Take one logical step of one or more physical batches."""
        for batch in self.batches:
            method.backward(self.losses, batch)
        method.step()

    def timed(self, name: str) -> float:
        """Return the seconds of a step, without attaching and warm-up."""
        method = self.attach(name)
        try:
            return self.settings.seconds_per_step(lambda: self.step(method), lambda: wait_for(self.device.type))
        finally:
            method.detach()


class _TwoClasses(nn.Module):
    """An encoder, mean pooling over all tokens, and a linear head: token ids [B, T] -> logits [B, 2]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.width, 2)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(ids, torch.ones_like(ids)).mean(1))


def _model(settings: ThroughputSettings, seed: int, meta: bool) -> nn.Module:
    """Build the model with random weights; the cost of a step does not depend on them."""
    from dpbench.models import tuning
    from dpbench.models.seeded import build
    from dpbench.spec.sources import Source

    if settings.classifies:
        encoder = models.encoder(settings.size, Source(kind="scratch"), seed=seed, meta=meta)
        model: nn.Module = build(lambda: _TwoClasses(encoder), seed, meta)
        if settings.lora_rank is not None:
            tuning.encoder_lora(model, settings.lora_rank, 2.0 * settings.lora_rank, seed, meta)
        return model.to(DTYPES[settings.dtype])
    return models.language_model(
        settings.size, seed=seed, tied=settings.tied, dtype=DTYPES[settings.dtype], meta=meta, context=context(settings)
    )


def _losses(settings: ThroughputSettings, device: str) -> Losses:
    """Return the function losses(model, batch), under autocast where the settings say so."""
    losses: Losses = _classification_losses if settings.classifies else models.language_model_losses
    if settings.dtype != "amp":
        return losses

    def under_autocast(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return losses(model, batch)

    return under_autocast


def _classification_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the [B] cross entropies of the first class."""
    logits = model(batch["input_ids"]).float()
    return torch.logsumexp(logits, 1) - logits[:, 0]


def context(settings: ThroughputSettings) -> int | None:
    """Return T as the number of positions where it exceeds that of the size; else None."""
    context_of_size = models.language_model_size(settings.size)["context"]
    return settings.tokens if settings.tokens > context_of_size else None

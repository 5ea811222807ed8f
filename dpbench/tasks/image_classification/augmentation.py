"""Pixels as a model sees them, and random copies of images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dpbench.tasks.image_classification.config import AugmentationSettings


def scaled(pixels: Tensor) -> Tensor:
    """Return uint8 [B, C, H, W] as fp32 in -1 to 1: by public constants, not by the data's mean, which would not be private.

    Channels last in memory, where torch's convolutions and pooling are faster. Written to new memory, as `to(memory_format=...)`
    leaves images of one channel as they are, and with them all that a model makes of them.
    """
    images = torch.empty(pixels.shape, device=pixels.device, memory_format=torch.channels_last)
    return images.copy_(pixels).div_(127.5).sub_(1)


class Moves:
    """How each copy of each image of a logical batch is moved and mirrored."""

    def __init__(self, settings: AugmentationSettings, batch: int, random: np.random.Generator) -> None:
        shape = (batch, settings.multiplicity)
        self.shift = settings.shift
        self.down, self.right = (random.integers(0, 2 * settings.shift + 1, shape) for _ in range(2))
        self.mirrored = random.random(shape) < 0.5 if settings.flip else np.zeros(shape, dtype=bool)

    def copies(self, images: Tensor, rows: np.ndarray) -> Tensor:
        """Return the copies [B, copies, C, H, W] of images [B, C, H, W] at positions `rows` [B]."""
        height, width = images.shape[-2:]
        wide = pad(images, (self.shift,) * 4, mode="reflect") if self.shift else images
        down, right, mirrored = (torch.as_tensor(a[rows], device=images.device) for a in (self.down, self.right, self.mirrored))
        y = down[..., None] + torch.arange(height, device=images.device)
        along = torch.arange(width, device=images.device)
        x = right[..., None] + torch.where(mirrored[..., None], along.flip(0), along)
        example = torch.arange(len(images), device=images.device)[:, None, None, None]
        return wide.movedim(1, -1)[example, y[..., :, None], x[..., None, :]].movedim(-1, 2)

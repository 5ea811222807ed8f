"""Model, data, augmentation and averaged weights of the image job. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad

from dpbench import plugins
from dpbench.data import registry as datasets
from dpbench.jobs import image_features, rest
from dpbench.jobs.contract import Context
from dpbench.models import registry as models
from dpbench.sampling import physical_batches
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    from dpbench.jobs.image import Augmentation, Optimizer, Settings

_AUGMENTING = 5  # a stream of the seed of its own: sampling has 1 and 2, the noise 3, directions and public distillation 4
_EVALUATED = 500  # images of a forward pass without gradients


def model_of(settings: Settings, seed: int = 0, meta: bool = False) -> nn.Module:
    """The settings' model for its dataset's images, or for their features."""
    extra = plugins.get("dataset", settings.task).extra
    image = extra["image"] if settings.features is None else models.image_features_shape(settings.features, extra["image"])
    outputs = len(extra["classes"]) if "classes" in extra else len(datasets.attributes(settings.task))
    return models.image_model(settings.model, image, outputs, seed, meta)


def optimizer(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if settings.name == "adamw":
        return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(trained, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def scaled(pixels: Tensor) -> Tensor:
    """uint8 [B, C, H, W] -> fp32 in -1 to 1: by public constants, not by the data's own mean, which would not be private.

    Channels last in memory, where torch's convolutions and pooling are faster. Written to new memory, as `to(memory_format=...)`
    leaves images of one channel as they are, and with them all that a model makes of them.
    """
    images = torch.empty(pixels.shape, device=pixels.device, memory_format=torch.channels_last)
    return images.copy_(pixels).div_(127.5).sub_(1)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: of classes [B] one each; of attributes [B, L] the sum of L binary ones."""
    if labels.dim() == 1:
        return cross_entropy(logits, labels, reduction="none")
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1)


class ImageTask:
    """A model and the images it is trained and evaluated on, kept as bytes on the device; or the features of a parent run."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}
        self.prepare: Callable[[Tensor], Tensor] = scaled if settings.features is None else Tensor.float
        for split, (inputs, labels) in _stored(settings, context).items():
            self.splits[split] = (inputs.to(self.device), labels.to(self.device))
        self.model = model_of(settings, context.seed).to(self.device)
        self._seed, self._step = context.seed, -1
        self._drawn = np.empty(0, dtype=np.int64)
        self._moves: Moves | None = None

    def __len__(self) -> int:
        return len(self.splits["train"][1])

    def physical(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        """Positions in a logical batch, in pieces; draws the copies of all of it, whatever the pieces."""
        self._step, self._drawn = self._step + 1, drawn
        if self.settings.augmentation is not None:
            random = np.random.default_rng(np.random.SeedSequence([self._seed, _AUGMENTING, self._step]))
            self._moves = Moves(self.settings.augmentation, len(drawn), random)
        return physical_batches(np.arange(len(drawn)), self.settings.physical)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """image [B, copies, C, H, W] and label [B], of attributes [B, L], of some positions."""
        index = torch.as_tensor(self._drawn[rows], device=self.device)
        pixels, labels = self.splits["train"]
        images = self.prepare(pixels[index])
        copies = images[:, None] if self._moves is None else self._moves.copies(images, rows)
        return {"image": copies, "label": labels[index]}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """[B] cross entropies, each the mean over an example's copies; of attributes the sum over them.

        The model is called once a copy, with the batch first, so that an engine adds the copies' gradients before it clips.
        """
        copies = batch["image"].unbind(1)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            logits = [model(images) for images in copies]
        return torch.stack([cross_entropies(own.float(), batch["label"]) for own in logits]).mean(0)

    def accuracy(self, split: str) -> tuple[float, int]:
        """(share of a split's images classified right, images); of training images the first `train_evaluated`.

        Of attributes the mean share over them.
        """
        pixels, labels = self.splits[split]
        count = min(len(labels), self.settings.train_evaluated) if split == "train" else len(labels)
        self.model.eval()
        right = 0.0
        with torch.inference_mode():
            for start in range(0, count, _EVALUATED):
                rows = slice(start, min(start + _EVALUATED, count))
                logits, wanted = self.model(self.prepare(pixels[rows])), labels[rows]
                found = logits.argmax(-1) == wanted if wanted.dim() == 1 else ((logits > 0) == wanted.bool()).double().mean(1)
                right += float(found.sum())
        return right / count, count


def _stored(settings: Settings, context: Context) -> dict[str, tuple[Tensor, Tensor]]:
    """Split -> inputs [N, C, H, W], bytes of images or fp16 features, and labels."""
    if settings.features is not None:
        stored = load_file(context.artefact("features", image_features.FILE))
        return {split: (stored[f"{split}_x"], stored[f"{split}_y"]) for split in image_features.SPLITS}
    source = context.sources[f"dataset:{settings.task}"]
    images, labels = _images(settings.task, "train", source, settings.train_limit)
    if settings.evaluate_on == "train_rest":
        apart = rest.in_rest((image.tobytes() for image in images), settings.held_out, settings.task)
        evaluated, images, labels = (images[apart], labels[apart]), images[~apart], labels[~apart]
    else:
        evaluated = _images(settings.task, settings.evaluate_on, source)
    found = {"train": (images, labels), settings.evaluate_on: evaluated}
    return {split: (torch.from_numpy(pixels), torch.as_tensor(of)) for split, (pixels, of) in found.items()}


def _images(task: str, split: str, source: Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    columns = datasets.load(task, split, source, limit).columns
    return columns["image"], np.asarray(columns["labels" if "labels" in columns else "label"])


class Moves:
    """How each copy of each image of a logical batch is moved and mirrored."""

    def __init__(self, settings: Augmentation, batch: int, random: np.random.Generator) -> None:
        shape = (batch, settings.multiplicity)
        self.shift = settings.shift
        self.down, self.right = (random.integers(0, 2 * settings.shift + 1, shape) for _ in range(2))
        self.mirrored = random.random(shape) < 0.5 if settings.flip else np.zeros(shape, dtype=bool)

    def copies(self, images: Tensor, rows: np.ndarray) -> Tensor:
        """Images [B, C, H, W] at positions `rows` [B] -> their copies [B, copies, C, H, W]."""
        height, width = images.shape[-2:]
        wide = pad(images, (self.shift,) * 4, mode="reflect") if self.shift else images
        down, right, mirrored = (torch.as_tensor(a[rows], device=images.device) for a in (self.down, self.right, self.mirrored))
        y = down[..., None] + torch.arange(height, device=images.device)
        along = torch.arange(width, device=images.device)
        x = right[..., None] + torch.where(mirrored[..., None], along.flip(0), along)
        example = torch.arange(len(images), device=images.device)[:, None, None, None]
        return wide.movedim(1, -1)[example, y[..., :, None], x[..., None, :]].movedim(-1, 2)


class Average:
    """An exponential average of a model's weights over steps.

    The decay starts low, min(decay, (1 + t) / (10 + t)) at step t, so that the initial weights are forgotten.
    Guarantee: a function of released weights alone: costs no privacy.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.values = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer's step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for value, parameter in zip(self.values, self.model.parameters(), strict=True):
            value.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def put_in(self) -> None:
        """The average in place of the model's weights."""
        for value, parameter in zip(self.values, self.model.parameters(), strict=True):
            parameter.copy_(value)

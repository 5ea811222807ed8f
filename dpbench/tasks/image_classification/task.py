"""The task: model, data, losses and accuracy of an image classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from dpbench import plugins
from dpbench.data import registry as datasets
from dpbench.execution.contract import Context
from dpbench.models import registry as models
from dpbench.privacy.sampling import physical_batches
from dpbench.tasks.features import FILE
from dpbench.tasks.forward import autocast
from dpbench.tasks.holdout import is_held_out
from dpbench.tasks.image_classification import features
from dpbench.tasks.image_classification.augmentation import Moves, scaled
from dpbench.tasks.image_classification.config import Settings
from dpbench.training.run import TrainingTask

_AUGMENTING = 5  # a separate stream of the seed: sampling has 1 and 2, the noise 3, directions and public distillation 4
_EVALUATED = 500  # images of a forward pass without gradients


def model_of(settings: Settings, seed: int = 0, meta: bool = False) -> nn.Module:
    """Return the settings' model for its dataset's images, or for their features."""
    extra = plugins.get("dataset", settings.dataset).extra
    image = extra["image"] if settings.features is None else models.image_features_shape(settings.features, extra["image"])
    outputs = len(extra["classes"]) if "classes" in extra else len(datasets.attributes(settings.dataset))
    return models.image_model(settings.model, image, outputs, seed, meta)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return [B]: of classes [B] one each; of attributes [B, L] the sum of L binary ones."""
    if labels.dim() == 1:
        return cross_entropy(logits, labels, reduction="none")
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1)


class ImageTask(TrainingTask):
    """A model and the images it is trained and evaluated on, kept as bytes on the device; or the features of a parent run."""

    units = {"accuracy": "%", "train_accuracy": "%"}  # noqa: RUF012

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}
        self.prepare: Callable[[Tensor], Tensor] = scaled if settings.features is None else Tensor.float
        for split, (inputs, labels) in _stored(settings, context).items():
            self.splits[split] = (inputs.to(self.device), labels.to(self.device))
        self.model = model_of(settings, context.seed).to(self.device)
        self.rows = len(self.splits["train"][1])
        self._seed, self._step = context.seed, -1
        self._drawn = np.empty(0, dtype=np.int64)
        self._moves: Moves | None = None

    def evaluate(self) -> dict[str, float]:
        """Return accuracy on the evaluated images, and on the first training images."""
        accuracy, self.facts["evaluated_rows"] = self.accuracy(self.settings.evaluate_on)
        return {"accuracy": 100 * accuracy, "train_accuracy": 100 * self.accuracy("train")[0]}

    def physical(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        """Cut the positions in a logical batch into pieces; draws the copies of all of it, whatever the pieces."""
        self._step, self._drawn = self._step + 1, drawn
        if self.settings.augmentation is not None:
            random = np.random.default_rng(np.random.SeedSequence([self._seed, _AUGMENTING, self._step]))
            self._moves = Moves(self.settings.augmentation, len(drawn), random)
        return physical_batches(np.arange(len(drawn)), self.settings.physical)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return image [B, copies, C, H, W] and label [B], of attributes [B, L], of some positions."""
        index = torch.as_tensor(self._drawn[rows], device=self.device)
        pixels, labels = self.splits["train"]
        images = self.prepare(pixels[index])
        copies = images[:, None] if self._moves is None else self._moves.copies(images, rows)
        return {"image": copies, "label": labels[index]}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B] cross entropies, each the mean over an example's copies; of attributes the sum over them.

        The model is called once a copy, with the batch first, so that an engine adds the copies' gradients before it clips.
        """
        copies = batch["image"].unbind(1)
        with autocast(self.device, self.settings.precision):
            logits = [model(images) for images in copies]
        return torch.stack([cross_entropies(of_copy.float(), batch["label"]) for of_copy in logits]).mean(0)

    def accuracy(self, split: str) -> tuple[float, int]:
        """Return (share of a split's images classified right, images); of training images the first `train_evaluated`.

        Of attributes the mean share over them.
        """
        pixels, labels = self.splits[split]
        count = min(len(labels), self.settings.train_evaluated) if split == "train" else len(labels)
        self.model.eval()
        right = 0.0
        with torch.inference_mode():
            for start in range(0, count, _EVALUATED):
                rows = slice(start, min(start + _EVALUATED, count))
                logits, truth = self.model(self.prepare(pixels[rows])), labels[rows]
                hits = logits.argmax(-1) == truth if truth.dim() == 1 else ((logits > 0) == truth.bool()).double().mean(1)
                right += float(hits.sum())
        return right / count, count


def _stored(settings: Settings, context: Context) -> dict[str, tuple[Tensor, Tensor]]:
    """Return split -> inputs [N, C, H, W], bytes of images or fp16 features, and labels."""
    if settings.features is not None:
        stored = load_file(context.artefact("features", FILE))
        return {split: (stored[f"{split}_x"], stored[f"{split}_y"]) for split in features.SPLITS}
    source = context.sources[f"dataset:{settings.dataset}"]
    images, labels = features.images_of(settings.dataset, "train", source, settings.train_limit)
    if settings.evaluate_on == "train_rest":
        out = is_held_out((image.tobytes() for image in images), settings.held_out, settings.dataset)
        evaluated, images, labels = (images[out], labels[out]), images[~out], labels[~out]
    else:
        evaluated = features.images_of(settings.dataset, settings.evaluate_on, source)
    splits = {"train": (images, labels), settings.evaluate_on: evaluated}
    return {split: (torch.from_numpy(pixels), torch.as_tensor(of)) for split, (pixels, of) in splits.items()}

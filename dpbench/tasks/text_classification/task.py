"""The task: data, model, losses and accuracy of a text classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.models import registry as models
from dpbench.models.wrappers import Encoder
from dpbench.privacy.sampling import by_tokens, physical_batches
from dpbench.spec.sources import Source
from dpbench.tasks.features import FILE
from dpbench.tasks.forward import attention, autocast
from dpbench.tasks.text_classification.config import Settings, feature_width
from dpbench.tasks.text_classification.encoding import TextData, chosen_rows, features, in_pieces, keys_of
from dpbench.tasks.text_classification.model import Classifier, Head, freeze, make_head, prepared
from dpbench.tasks.text_classification.prompting import filled, prompted
from dpbench.tasks.text_classification.rows import RowSplit
from dpbench.training.run import TrainingTask

_PHYSICAL = 4096  # rows of features in a physical batch


def parameter_groups(settings: Settings, model: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters, the head's with its learning rate, if it has one."""
    head = [p for n, p in model.named_parameters() if p.requires_grad and (n.startswith("head.") or isinstance(model, Head))]
    ids = {id(p) for p in head}
    body = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    rate = settings.optimizer.learning_rate
    return [{"params": head, "lr": settings.optimizer.head_learning_rate or rate}, {"params": body, "lr": rate}]


class _Classification(TrainingTask):
    """What training on texts and training on features share."""

    units = {"accuracy": "%"}  # noqa: RUF012

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.settings, self.model)

    def evaluate(self) -> dict[str, float]:
        accuracy, rows = self.accuracy()
        self.facts["evaluated_rows"] = rows
        return {"accuracy": 100 * accuracy}

    def accuracy(self) -> tuple[float, int]:
        """Return (share of evaluated rows classified right, rows)."""
        raise NotImplementedError

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B] cross entropies."""
        return cross_entropy(self.logits(model, batch), batch["label"], reduction="none")

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B, classes] logits in fp32."""
        raise NotImplementedError


class TextTask(_Classification):
    """Fine-tuning of a full encoder, on token ids. index: training rows that can be drawn."""

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        data = TextData(settings.dataset, settings.model, context.sources, settings.max_length, settings.head == "prompt")
        self.train, keys = data.split("train", settings.train_limit)
        split = RowSplit(settings, self.train.labels, lambda: keys, context.seed)
        self.rows, self.index, self.warnings = split.rows, split.drawn, split.warnings
        self.lengths = self.train.lengths
        self.evaluated = data.split("validation")[0] if split.held_out is None else self.train.part(split.held_out)
        self.evaluated = self.evaluated.part(chosen_rows(len(self.evaluated.ids), settings.evaluate_limit))
        self.model = self._model(data, context).to(self.device)
        self.facts["tokenizer_sha256"] = data.tokenizer.sha256

    def _model(self, data: TextData, context: Context) -> nn.Module:
        """Return the model with its initial weights, the same for all methods of a seed."""
        settings, seed = self.settings, context.seed
        encoder = self._encoder(context)
        if data.prompt is not None:
            source = context.sources[f"model:{settings.model}"]
            return freeze(prompted(settings.model, encoder, len(data.classes), source, data.prompt.word_ids), settings, seed)
        budget = settings.token_budget
        centre = features(encoder, data.public_inputs(), budget).mean(0)
        phrases = None
        if settings.head == "label_words":
            means = [prepared(features(encoder, texts, budget), centre, settings).mean(0) for texts in data.label_phrases()]
            phrases = torch.stack(means)
        if settings.head == "prompt_words":
            phrases = prepared(features(encoder, data.encode(filled(settings.dataset)), budget), centre, settings)
        model = Classifier(encoder, make_head(settings, encoder.width, len(data.classes), seed, phrases), settings)
        model.centre.copy_(centre)  # type: ignore[operator]
        return freeze(model, settings, seed)

    def _encoder(self, context: Context) -> Encoder:
        """Return the encoder with its initial weights, the same for all methods of a seed."""
        settings = self.settings
        return models.encoder(settings.model, context.sources[f"model:{settings.model}"], settings.layers, seed=context.seed)

    def __len__(self) -> int:
        return len(self.index)

    def physical(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        """Cut a logical batch into pieces of rows of similar length."""
        return by_tokens(self.index[drawn], self.lengths, self.settings.token_budget)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self.to_device(self.train.batch(rows))

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B, classes] logits in fp32, of a forward pass in the settings' precision."""
        with autocast(self.device, self.settings.precision), attention(self.device, self.settings.functional):
            return model(batch).float()

    def accuracy(self) -> tuple[float, int]:
        self.model.eval()
        right = 0
        with torch.inference_mode(), autocast(self.device, self.settings.precision):
            for _, batch in in_pieces(self.evaluated, 2 * self.settings.token_budget):
                batch = self.to_device(batch)
                right += int((self.model(batch).argmax(-1) == batch["label"]).sum())
        return right / len(self.evaluated.ids), len(self.evaluated.ids)


class FeatureTask(_Classification):
    """An MLP on features that a parent run has left."""

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        stored = load_file(context.artefact("features", FILE))
        centre = stored["public_mean"]
        labels = stored["train_y"].numpy()

        def keys() -> list[str]:
            """Identify rows as when the features were computed: both runs are named after the same files."""
            source = context.sources[f"dataset:{settings.dataset}"]
            columns = datasets.load(settings.dataset, "train", source, settings.train_limit).columns
            rows = keys_of(columns["text"], columns.get("text_pair"))
            if len(rows) != len(labels):
                what = f"{settings.dataset} has {len(rows)} training rows, and its features {len(labels)}"
                raise DpbenchError(what, "compute the features again")
            return rows

        split = RowSplit(settings, labels, keys, context.seed)
        self.rows, self.warnings = split.rows, split.warnings
        train = prepared(stored["train_x"].float(), centre, settings), stored["train_y"]
        self.x, self.y = (part[split.drawn].to(self.device) for part in train)
        evaluated = prepared(stored["validation_x"].float(), centre, settings), stored["validation_y"]
        if split.held_out is not None:
            index = split.held_out[chosen_rows(len(split.held_out), settings.evaluate_limit)]
            evaluated = train[0][index], train[1][index]  # of a validation split there are no more features than are evaluated
        self.evaluated = evaluated[0].to(self.device), evaluated[1].to(self.device)
        phrases = prepared(stored["label_phrases"], centre, settings) if "label_phrases" in stored else None
        if settings.head == "prompt_words":
            phrases = prepared(self._of_prompts(context), centre, settings)
        classes = len(datasets.classes(settings.dataset))
        self.model = make_head(settings, self.x.shape[1], classes, context.seed, phrases).to(self.device)

    def _of_prompts(self, context: Context) -> Tensor:
        """Return [classes, H] features of the dataset's prompt with each label word."""
        settings = self.settings
        data = TextData(settings.dataset, settings.model, context.sources, settings.max_length)
        encoder = models.encoder(settings.model, context.sources[f"model:{settings.model}"], settings.layers)
        return features(encoder, data.encode(filled(settings.dataset)), settings.token_budget)

    def __len__(self) -> int:
        return len(self.y)

    def physical(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        return physical_batches(drawn, _PHYSICAL)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        index = torch.as_tensor(rows, device=self.device)
        return {"x": self.x[index], "label": self.y[index]}

    def logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"])

    def accuracy(self) -> tuple[float, int]:
        x, y = self.evaluated
        self.model.eval()
        with torch.inference_mode():
            return float((self.model(x).argmax(-1) == y).float().mean()), len(y)


def meta_model(settings: Settings, sources: dict[str, Source]) -> nn.Module:
    """Return the trained model on the meta device."""
    source = sources[f"model:{settings.model}"]
    encoder = models.encoder(settings.model, source, settings.layers, meta=True)
    classes = len(datasets.classes(settings.dataset))
    if settings.head == "prompt":
        return freeze(prompted(settings.model, encoder, classes, None).to("meta"), settings, meta=True)
    if settings.training == "features":
        return Head(feature_width(settings.dataset, encoder.width), settings.hidden, classes).to("meta")
    head = Head(encoder.width, settings.hidden, classes)
    return freeze(Classifier(encoder, head.to("meta"), settings).to("meta"), settings, meta=True)

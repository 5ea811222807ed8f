"""Models, data and evaluation of the classify job. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, normalize

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown
from dpbench.jobs import features as features_job
from dpbench.jobs.contract import Context
from dpbench.jobs.prompting import filled, prompted
from dpbench.jobs.rest import in_rest, share_of
from dpbench.jobs.text import TextData, features, in_pieces, pooled, some, train_texts
from dpbench.models import registry as models
from dpbench.models import tuning
from dpbench.sampling import by_tokens, physical_batches
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    from dpbench.jobs.classify import Optimizer, Settings
    from dpbench.models.wrappers import Encoder

_PHYSICAL = 4096  # rows of features in a physical batch


class Head(nn.Module):
    """Features [B, H] -> logits [B, classes]: tanh layers, then a linear one that starts at zero or at the label words."""

    def __init__(self, width: int, hidden: list[int], classes: int) -> None:
        super().__init__()
        widths = [width, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.out(x)


class Classifier(nn.Module):
    """Encoder, mean pooling, centring by public text, head."""

    def __init__(self, encoder: nn.Module, head: Head, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.head, self.settings = encoder, head, settings
        self.register_buffer("centre", torch.zeros(encoder.width))  # type: ignore[arg-type]

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(prepared(pooled(self.encoder, batch).float(), self.centre, self.settings))  # type: ignore[arg-type]


def prepared(x: Tensor, centre: Tensor, settings: Settings) -> Tensor:
    """Features as the head sees them; each row by itself."""
    if settings.centre:
        x = x - centre
    if settings.feature_norm is not None:
        x = normalize(x, dim=-1) * settings.feature_norm
    return x * settings.feature_scale


def make_head(settings: Settings, width: int, classes: int, seed: int, phrases: Tensor | None) -> Head:
    """A head with its initial weights, the same for all methods of a seed.

    Args:
        phrases: [classes, H] prepared mean features of public texts of each class, for `label_words` and `prompt_words`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(width, settings.hidden, classes)
    nn.init.zeros_(head.out.weight)
    nn.init.zeros_(head.out.bias)
    if settings.head in ("label_words", "prompt_words"):
        if phrases is None:
            raise DpbenchError(f"{settings.task} has no label phrases", "take head: zero, or add label_phrases to its plug-in")
        with torch.no_grad():
            head.out.weight.copy_(normalize(phrases - phrases.mean(0), dim=-1))
    return head


def optimizer(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all trainable parameters, the head's with a learning rate of its own if it has one."""
    head = [p for n, p in model.named_parameters() if p.requires_grad and (n.startswith("head.") or isinstance(model, Head))]
    ids = {id(p) for p in head}
    body = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": head, "lr": settings.head_learning_rate or settings.learning_rate}]
    if body:
        groups.append({"params": body, "lr": settings.learning_rate})
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[settings.name]
    return kind(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def kept_rows(settings: Settings, labels: np.ndarray, texts: Callable[[], list[str]], classes: list[str]) -> np.ndarray:
    """Indices of the rows that `class_keep` leaves.

    Guarantee: whether a row stays depends on its own texts and label and on public constants alone, so adding or removing one
    row changes one row of what is left: the mechanism's epsilon is that of the whole dataset. Copies of a row are kept together.

    Args:
        labels: [N]; texts: gives the text that tells each row apart, and is asked only where something is left out.

    Raises:
        DpbenchError: a share of a class that the dataset does not have.
    """
    for name in settings.class_keep:
        if name not in classes:
            raise unknown("class", name, classes, f"class_keep of {settings.task}")
    share = np.asarray([settings.class_keep.get(name, 1.0) for name in classes])
    if (share == 1).all():
        return np.arange(len(labels))
    draw = np.asarray([share_of(text.encode()) for text in texts()])
    return np.flatnonzero(draw < share[labels])


class Split:
    """Which training rows can be drawn, and which are the rest that is evaluated on, where the settings ask for one.

    drawn, rest: indices, both of rows that `class_keep` leaves; rest None: a split of its own is evaluated on. rows: n, training
    rows without the rest and before `class_keep`, which is what the mechanism protects; with `per_class` the rows of that
    choice, which is then the dataset. warnings: of classes with fewer rows than `per_class`.

    Guarantee: a row's place among the others decides nothing. `class_keep` and the rest look at one row's texts and label, so
    removing a row leaves all others where they were. `per_class` orders the rows of a class by a hash of the public seed and
    their texts and takes the first: removing a row that was not chosen changes nothing, and removing one that was lets the next
    of its class in, if there is one. So epsilon holds between choices that differ by one row, as the mechanism's relation says;
    between whole datasets of which one has a row more, the choices differ by one row removed and one added: group privacy of
    two rows under `add_or_remove`, the relation itself under `replace_one`.
    """

    def __init__(self, settings: Settings, labels: np.ndarray, texts: Callable[[], list[str]], seed: int) -> None:
        """labels: [N]; texts: gives what tells each row apart, asked only where rows are chosen; seed: of `per_class`."""
        classes: list[str] = plugins.get("dataset", settings.task).extra["classes"]
        texts = cache(texts)
        self.drawn = kept_rows(settings, labels, texts, classes)
        self.rest: np.ndarray | None = None
        self.warnings: list[str] = []
        self.rows = len(labels)
        if settings.evaluate_on == "train_rest":
            apart = in_rest((text.encode() for text in texts()), settings.held_out, settings.task)
            self.rows -= int(apart.sum())
            self.drawn, self.rest = self.drawn[~apart[self.drawn]], self.drawn[apart[self.drawn]]
        if settings.per_class is not None:
            self._choose(settings.per_class, labels, texts(), classes, seed)
            self.rows = len(self.drawn)

    def _choose(self, count: int, labels: np.ndarray, texts: list[str], classes: list[str], seed: int) -> None:
        """`count` rows of each class, others for another seed."""
        order = np.argsort([share_of(f"{seed} {texts[i]}".encode()) for i in self.drawn], kind="stable")
        shuffled = self.drawn[order]
        chosen = []
        for number, name in enumerate(classes):
            own = shuffled[labels[shuffled] == number][:count]
            if len(own) < count:
                self.warnings.append(f"{len(own)} rows of class {name}, where {count} were asked for: n counts those there are")
            chosen.append(own)
        self.drawn = np.sort(np.concatenate(chosen))


class TextTask:
    """Full fine-tuning on token ids."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        data = TextData(settings.task, settings.model, context.sources, settings.max_length, settings.head == "prompt")
        self.train, texts = data.split("train", settings.train_limit)
        split = Split(settings, self.train.labels, lambda: texts, context.seed)
        self.rows, self.index, self.warnings = split.rows, split.drawn, split.warnings
        self.lengths = self.train.lengths
        self.evaluated = data.split("validation")[0] if split.rest is None else self.train.part(split.rest)
        if settings.evaluate_limit is not None:
            self.evaluated = self.evaluated.part(some(len(self.evaluated.ids), settings.evaluate_limit))
        self.model = self._model(data, context)
        self.model.to(self.device)
        self.facts = {"tokenizer_sha256": data.tokenizer.sha256}

    def _model(self, data: TextData, context: Context) -> nn.Module:
        """With its initial weights, the same for all methods of a seed."""
        own, seed, source = self.settings, context.seed, context.sources[f"model:{self.settings.model}"]
        encoder = self._encoder(context)
        if data.prompt is not None:
            made = prompted(own.model, encoder, len(data.classes), source, data.prompt.word_ids)
            return freeze(made, own, seed)
        budget = own.token_budget
        centre = features(encoder, data.public_inputs(), budget).mean(0)
        phrases = None
        if own.head == "label_words":
            phrases = torch.stack([prepared(features(encoder, e, budget), centre, own).mean(0) for e in data.label_phrases()])
        if own.head == "prompt_words":
            phrases = prepared(features(encoder, data.encode(filled(own.task)), budget), centre, own)
        model = Classifier(encoder, make_head(own, encoder.width, len(data.classes), seed, phrases), own)
        model.centre.copy_(centre)  # type: ignore[operator]
        return freeze(model, own, seed)

    def _encoder(self, context: Context) -> Encoder:
        """With its initial weights, the same for all methods of a seed."""
        own = self.settings
        return models.encoder(own.model, context.sources[f"model:{own.model}"], own.layers, seed=context.seed)

    def __len__(self) -> int:
        return len(self.index)

    def physical(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        """Pieces of a logical batch, by length."""
        return by_tokens(self.index[drawn], self.lengths, self.settings.token_budget)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {k: v.to(self.device) for k, v in self.train.batch(rows).items()}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """[B] cross entropies."""
        with self._autocast(), self._attention():
            logits = model(batch)
        return cross_entropy(logits.float(), batch["label"], reduction="none")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    def _attention(self) -> AbstractContextManager[None]:
        """On the CPU plain products: on sentences of a dozen tokens the fused backward kernel takes three times as long."""
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()

    def accuracy(self) -> tuple[float, int]:
        """(share of evaluated rows classified right, rows)."""
        self.model.eval()
        right = 0
        with torch.inference_mode(), self._autocast():
            for _, batch in in_pieces(self.evaluated, 2 * self.settings.token_budget):
                batch = {k: v.to(self.device) for k, v in batch.items()}
                right += int((self.model(batch).argmax(-1) == batch["label"]).sum())
        return right / len(self.evaluated.ids), len(self.evaluated.ids)


class FeatureTask:
    """An MLP on features a parent run has left."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        stored = load_file(context.artefact("features", features_job.FILE))
        classes: list[str] = plugins.get("dataset", settings.task).extra["classes"]
        centre = stored["public_mean"]
        labels = stored["train_y"].numpy()

        def texts() -> list[str]:
            """Of the rows that the features were made of: both runs are named after the same files."""
            there = train_texts(settings.task, context.sources[f"dataset:{settings.task}"], settings.train_limit)
            if len(there) != len(labels):
                what = f"{settings.task} has {len(there)} training rows, and its features {len(labels)}"
                raise DpbenchError(what, "make the features again")
            return there

        split = Split(settings, labels, texts, context.seed)
        self.rows, self.warnings = split.rows, split.warnings
        train = prepared(stored["train_x"].float(), centre, settings), stored["train_y"]
        self.x, self.y = (part[split.drawn].to(self.device) for part in train)
        evaluated = prepared(stored["validation_x"].float(), centre, settings), stored["validation_y"]
        if split.rest is not None:
            evaluated = train[0][split.rest], train[1][split.rest]
            if settings.evaluate_limit is not None:  # of a validation split there are no more features than these
                index = some(len(evaluated[1]), settings.evaluate_limit)
                evaluated = evaluated[0][index], evaluated[1][index]
        self.evaluated = evaluated[0].to(self.device), evaluated[1].to(self.device)
        phrases = prepared(stored["label_phrases"], centre, settings) if "label_phrases" in stored else None
        if settings.head == "prompt_words":
            phrases = prepared(self._of_prompts(context), centre, settings)
        self.model = make_head(settings, self.x.shape[1], len(classes), context.seed, phrases).to(self.device)
        self.facts: dict[str, Any] = {}

    def _of_prompts(self, context: Context) -> Tensor:
        """[classes, H] features of the dataset's prompt with each label word."""
        own = self.settings
        if features_job.are_pairs(own.task):
            raise DpbenchError(
                f"{own.task}: of a pair the head sees product and distance, which a sentence has not", "take head: zero"
            )
        data = TextData(own.task, own.model, context.sources, own.max_length)
        encoder = models.encoder(own.model, context.sources[f"model:{own.model}"], own.layers)
        return features(encoder, data.encode(filled(own.task)), own.token_budget)

    def __len__(self) -> int:
        return len(self.y)

    def physical(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        return physical_batches(drawn, _PHYSICAL)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        index = torch.as_tensor(rows, device=self.device)
        return {"x": self.x[index], "label": self.y[index]}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """[B] cross entropies."""
        return cross_entropy(model(batch["x"]), batch["label"], reduction="none")

    def accuracy(self) -> tuple[float, int]:
        """(share of evaluated rows classified right, rows)."""
        x, y = self.evaluated
        self.model.eval()
        with torch.inference_mode():
            return float((self.model(x).argmax(-1) == y).float().mean()), len(y)


class Curve:
    """Accuracy on the evaluated rows along training. points: [step, %] each, evenly spaced, the last after the last step."""

    def __init__(self, task: TextTask | FeatureTask, steps: int, points: int) -> None:
        self._task, self._steps, self._every = task, steps, max(1, steps // points)
        self.points: list[list[float]] = []
        self.rows = 0

    def __call__(self, done: int) -> None:
        """After step `done`: looks at the released weights alone, and leaves the model as it was."""
        if done % self._every and done != self._steps:
            return
        accuracy, self.rows = self._task.accuracy()
        self._task.model.train()
        self.points.append([done, 100 * accuracy])


def freeze(model: nn.Module, settings: Settings, seed: int = 0, meta: bool = False) -> nn.Module:
    """The model of full fine-tuning, its embeddings frozen if the settings say so; or frozen but for adapters and head."""
    if settings.lora is not None:
        return tuning.encoder_lora(model, settings.lora.rank, settings.lora.alpha, seed, meta)
    if settings.freeze_embeddings:
        for name, parameter in model.named_parameters():
            if ".embeddings." in name:
                parameter.requires_grad_(False)
    return model


def meta_model(settings: Settings, sources: dict[str, Source]) -> nn.Module:
    """The trained model on the meta device."""
    source = sources[f"model:{settings.model}"]
    encoder = models.encoder(settings.model, source, settings.layers, meta=True)
    classes = len(plugins.get("dataset", settings.task).extra["classes"])
    if settings.head == "prompt":
        return freeze(prompted(settings.model, encoder, classes, None).to("meta"), settings, meta=True)
    width = features_job.width(settings.task, encoder.width) if settings.training == "features" else encoder.width
    head = Head(width, settings.hidden, classes).to("meta")
    return (
        head if settings.training == "features" else freeze(Classifier(encoder, head, settings).to("meta"), settings, meta=True)
    )

"""The task: data, model, losses, decoding and scores of a language model that puts tables into words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from dpbench.data import coding, described
from dpbench.data.described import Described
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.environment import require_device
from dpbench.metrics import text as metrics
from dpbench.models import tuning
from dpbench.models.decoding import generate
from dpbench.models.wrappers import fuse_gelu
from dpbench.privacy.sampling import by_tokens
from dpbench.records.schema import Metric
from dpbench.spec.sources import Source
from dpbench.tasks.checking import trained_rows
from dpbench.tasks.forward import attention, autocast, padded
from dpbench.tasks.holdout import share_of
from dpbench.tasks.language_model import WEIGHTS, coding_of, load_model, output_facts
from dpbench.tasks.table_to_text.config import Settings
from dpbench.training.run import TrainingTask

IGNORED = -100
ROOM = 32
"""Tokens that a text has at least, however long its input; half of max_length where that is less."""


class Examples:
    """Examples as token ids, and the loss of each. begins: where each one's text begins; pad: an id."""

    def __init__(self, settings: Settings, device: torch.device, ids: list[list[int]], begins: list[int], pad: int) -> None:
        self.settings, self.device, self.ids, self.begins, self.pad = settings, device, ids, begins, pad
        self.lengths = np.asarray([len(example) for example in ids])
        self.first = 0  # position of the first logits that are asked for

    def __len__(self) -> int:
        return len(self.ids)

    def physical(self, drawn: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Cut a logical batch into pieces of rows of similar length."""
        return by_tokens(drawn, self.lengths, self.settings.token_budget)

    def batch(self, rows: np.ndarray[Any, Any], tokens: int | None = None) -> dict[str, Tensor]:
        """Return input_ids and targets [B, T] (targets only where the text is), count [B] targets of each example.

        Args:
            tokens: T; None: of the longest of the rows.
        """
        ids = padded([self.ids[row] for row in rows], self.pad)
        ids = pad(ids, (0, 0 if tokens is None else tokens - ids.shape[1]), value=self.pad)
        predicted = [[IGNORED] * (self.begins[row] - 1) + self.ids[row][self.begins[row] :] for row in rows]
        targets = padded(predicted, IGNORED)
        targets = pad(targets, (0, ids.shape[1] - targets.shape[1]), value=IGNORED)
        batch = {"input_ids": ids, "targets": targets, "count": (targets != IGNORED).sum(1)}
        return {name: value.to(self.device) for name, value in batch.items()}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return mean cross entropies [B] over each example's text, without its input."""
        targets = batch["targets"][:, self.first :]
        with self.around():
            logits = model(batch["input_ids"], self.first) if self.first else model(batch["input_ids"])
        each = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return each.view(targets.shape).sum(1) / batch["count"]

    @contextmanager
    def around(self) -> Iterator[None]:
        """Run a forward pass in the settings' precision."""
        with autocast(self.device, self.settings.precision), attention(self.device, self.settings.functional):
            yield


class Rows(Examples):
    """The examples of a dataset. inputs: of the evaluated split; facts: for the record.

    Raises:
        DpbenchError: nothing to train or to evaluate on; what loading data and tokenizer raises.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self.settings, device = settings, require_device(settings.device)
        source = context.sources[f"dataset:{settings.dataset}"]
        self.coding = coding_of(settings, context.sources, "words" if settings.coding == "words" else "pieces")
        train = described.one_text_each(described.load(settings.dataset, "train", source))
        if settings.evaluate_on == "train_rest":
            held_out = [is_held_out(row, settings.held_out) for row in train]
            evaluated = list(compress(train, held_out))
            train = [row for row, is_out in zip(train, held_out, strict=True) if not is_out]
        else:
            evaluated = described.load(settings.dataset, settings.evaluate_on, source)
        self.inputs = described.grouped(evaluated)[: settings.evaluate_limit]
        for purpose, rows in (("to train on", train), ("to evaluate on", self.inputs)):
            if not rows:
                where = f"{settings.dataset} has no inputs {purpose}"
                raise DpbenchError(f"{where} (evaluate_on: {settings.evaluate_on})", "see its files, or change held_out")
        ids, begins, cut = self.encoded(train[: settings.train_limit])
        super().__init__(settings, device, ids, begins, self.coding.pad)
        self.facts = {
            "train_rows": len(self.ids),
            "train_rows_cut": cut,
            "mean_tokens": float(self.lengths.mean()),
            "vocabulary": self.coding.vocabulary,
            "tokenizer_sha256": self.coding.sha256,
        }

    def encoded(self, rows: list[Described]) -> tuple[list[list[int]], list[int], int]:
        """Return the ids of each input with its first text, where the text begins, and how many of them were cut."""
        ids, begins, cut = [], [], 0
        for row in rows:
            prompt, target = self.prompt(row), self.coding.target(row.fields, row.texts[0])
            begins.append(len(prompt))
            ids.append([*prompt, *target][: self.settings.max_length])
            cut += len(prompt) + len(target) > self.settings.max_length
        return ids, begins, cut

    def prompt(self, row: Described) -> list[int]:
        """Return the ids of an input, its end cut where it would leave no room for a text."""
        ids = self.coding.prompt(row.fields)
        longest = self.settings.max_length - min(ROOM, self.settings.max_length // 2)
        return ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]


class TableToText(Rows, TrainingTask):
    """The examples of a dataset, and the model with its initial weights, the same for all methods of a seed."""

    units = {"bleu": "", "rouge_l": "", "nist": ""}  # noqa: RUF012

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings, context)
        self._context = context
        self.rows, self.warnings = len(self), []
        weights = context.artefact("start", WEIGHTS) if settings.start else None
        source = context.sources[f"model:{settings.model_name}"]
        self.model = model_of(settings, self.coding.vocabulary, source, context.seed, weights=weights).to(self.device)
        self.facts["parameters"] = sum(p.numel() for p in self.model.parameters())

    def quicken(self) -> None:
        """Compute the same function in fewer operations: one for the activation, and no logits where no text is predicted."""
        fuse_gelu(self.model)
        self.first = min(self.begins) - 1

    def evaluate(self) -> dict[str, float]:
        """Score texts for all inputs of the evaluated split."""
        scores = self.score()
        return {name: scores[name] for name in self.units}

    def measured(self, values: Mapping[str, float]) -> list[Metric]:
        """Return the scores, and those of the published tables that need what is not free to use, empty and with the reason."""
        left_out = [Metric(name=name, value=None, unit="", note=why) for name, why in metrics.LEFT_OUT.items()]
        return [*super().measured(values), *left_out]

    def score(self) -> dict[str, float]:
        """Put all inputs of the evaluated split into words; return every score of the texts by its name."""
        outputs = self.write()
        references = [row.texts for row in self.inputs]
        self.facts |= output_facts(outputs) | {
            "evaluated_inputs": len(outputs),
            "samples": samples(self.inputs, outputs, self.settings.samples),
            "example": "one input with one text",
            "evaluated_on": self.settings.evaluate_on,
        }
        scores = {"bleu": metrics.bleu(outputs, references), "nist": metrics.nist(outputs, references)}
        return scores | dict(zip(("rouge_1", "rouge_2", "rouge_l"), metrics.rouge(outputs, references), strict=True))

    def text_loss(self) -> float:
        """Return the mean over all texts of the evaluated inputs of each one's mean cross entropy, in nats."""
        ids, begins, _ = self.encoded(described.one_text_each(self.inputs))
        texts = Examples(self.settings, self.device, ids, begins, self.pad)
        self.model.eval()
        with torch.no_grad():
            pieces = texts.physical(np.arange(len(texts)))
            return sum(float(texts.losses(self.model, texts.batch(rows)).double().sum()) for rows in pieces) / len(texts)

    def write(self) -> list[str]:
        """Write a text for each input."""
        self.model.eval()
        decoding = self.settings.decoding
        with autocast(self.device, self.settings.precision):
            continuations = generate(
                self.model,  # type: ignore[arg-type]  # a LanguageModel or Prefixed
                [self.prompt(row) for row in self.inputs],
                eos=self.coding.eos,
                limit=self.settings.max_length,
                beams=decoding.beams,
                length_penalty=decoding.length_penalty,
                banned=self.coding.banned,
                rows=decoding.rows,
                device=self.device,
                done=lambda count: self._context.report(count, len(self.inputs), "inputs put into words"),
            )
        return [self.coding.text(row.fields, ids) for row, ids in zip(self.inputs, continuations, strict=True)]


def is_held_out(row: Described, share: float) -> bool:
    """Return whether an input is held out: by its hash, so that its texts stay together."""
    return share_of(described.linear(row.fields).encode()) < share


def model_of(
    settings: Settings, vocabulary: int, source: Source, seed: int = 0, meta: bool = False, weights: Path | None = None
) -> nn.Module:
    """Return the model in training mode, with what is not trained frozen.

    Args:
        vocabulary: V of a model of a size; source: of published weights; weights: of the public start.
    """
    model: Any = load_model(
        settings, vocabulary, Source(kind="scratch") if settings.from_scratch else source, seed, meta, weights
    )
    how = settings.tuning
    if how.mode == "last_layers":
        model = tuning.last_layers(model, how.layers)
    elif how.mode == "lora":
        model = tuning.lora(model, how.rank, how.alpha, seed, meta)
    elif how.mode == "prefix":
        model = tuning.prefix(model, how.length, how.width, seed, meta)
    return model.train()


def samples(inputs: list[Described], outputs: list[str], count: int) -> list[dict[str, Any]]:
    """Return the `count` best and `count` worst outputs by sentence BLEU, none twice, with input and references.

    `dpbench.records.samples` takes the text of the dataset out where a record leaves this machine.
    """
    scores = [metrics.sentence_bleu(output, row.texts) for output, row in zip(outputs, inputs, strict=True)]
    order = sorted(range(len(outputs)), key=lambda i: (-scores[i], i))
    best = order[: min(count, (len(order) + 1) // 2)]
    worst = [i for i in order[::-1][:count] if i not in best]
    return [
        {
            "place": place,
            "index": i,
            "output": outputs[i],
            "bleu": round(scores[i], 2),
            "input": described.linear(inputs[i].fields),
            "references": list(inputs[i].texts),
        }
        for place, chosen in (("best", best), ("worst", worst))
        for i in chosen
    ]


def meta_model(settings: Settings, sources: dict[str, Source]) -> tuple[nn.Module, int]:
    """Return the model on the meta device, and the examples that the files at hand have, 0 where that is not known.

    Raises:
        DpbenchError: not a dataset of inputs and texts, or a file that does not have its schema.
    """
    described.require(settings.dataset)
    count = trained_rows(settings, sources)
    words = settings.coding == "words"
    size = coding.most_words(settings.dataset, settings.vocabulary) if words else settings.vocabulary
    return model_of(settings, size, sources[f"model:{settings.model_name}"], meta=True), count

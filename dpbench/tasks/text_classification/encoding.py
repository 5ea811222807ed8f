"""Texts as padded batches of token ids, and their pooled features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpbench import plugins
from dpbench.data import registry as datasets
from dpbench.data.public import PUBLIC, public_sentences
from dpbench.models import registry as models
from dpbench.models.wrappers import Encoder
from dpbench.privacy.sampling import by_tokens
from dpbench.spec.sources import Source
from dpbench.tasks.forward import autocast, padded
from dpbench.tasks.text_classification.config import are_pairs
from dpbench.tasks.text_classification.prompting import Prompt

PUBLIC_LINES = 512
"""Sentences of public text that features are centred by."""


@dataclass
class Encoded:
    """Token ids of texts, without padding, and their labels [N]; mask_at [N]: of prompts, the position of each one's mask."""

    ids: list[list[int]]
    labels: np.ndarray
    pad: int
    mask_at: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray([len(i) for i in self.ids])

    def part(self, index: np.ndarray) -> Encoded:
        """Return some of the examples, in the order of `index`."""
        at = None if self.mask_at is None else self.mask_at[index]
        return Encoded([self.ids[i] for i in index], self.labels[index], self.pad, at)

    def batch(self, index: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Return input_ids and attention_mask [B, T], label [B], of prompts mask_at [B]; T is the longest of the batch."""
        rows = [self.ids[i] for i in index]
        mask = padded([[1] * len(row) for row in rows])
        batch = {"input_ids": padded(rows, self.pad), "attention_mask": mask, "label": torch.as_tensor(self.labels[index])}
        return batch if self.mask_at is None else batch | {"mask_at": torch.as_tensor(self.mask_at[index])}


class TextData:
    """A classification dataset and a tokenizer; prompts: whether its examples are put into the dataset's prompt."""

    def __init__(self, dataset: str, model: str, sources: dict[str, Source], max_length: int, prompts: bool = False) -> None:
        self.dataset, self.max_length = dataset, max_length
        self.source = sources[f"dataset:{dataset}"]
        self.public = sources[f"dataset:{PUBLIC}"]
        self.tokenizer = models.text_tokenizer(model, sources[f"model:{model}"], self.public)
        self.plugin = plugins.get("dataset", dataset)
        self.classes: list[str] = self.plugin.extra["classes"]
        self.prompt = Prompt.of(dataset, self.tokenizer) if prompts else None

    def split(self, name: str, limit: int | None = None) -> tuple[Encoded, list[str]]:
        """Return a split's first `limit` examples, encoded, and a text that identifies each. A pair is one input."""
        texts, pairs, labels = self._texts(name, limit)
        return self.encode(texts, labels, pairs), keys_of(texts, pairs)

    def split_one_by_one(self, name: str, limit: int | None = None) -> tuple[Encoded, Encoded | None]:
        """Return a split's first `limit` examples with every text as an input: the texts, and of pairs the second texts."""
        texts, pairs, labels = self._texts(name, limit)
        return self.encode(texts, labels), None if pairs is None else self.encode(pairs, labels)

    def _texts(self, name: str, limit: int | None) -> tuple[list[str], list[str] | None, np.ndarray]:
        columns = datasets.load(self.dataset, name, self.source, limit).columns
        return columns["text"], columns.get("text_pair"), np.asarray(columns["label"], dtype=np.int64)

    def encode(self, texts: Sequence[str], labels: np.ndarray | None = None, pairs: Sequence[str] | None = None) -> Encoded:
        """Return texts, each with its second one if there are pairs, as token ids."""
        labels = np.zeros(len(texts), dtype=np.int64) if labels is None else labels
        if self.prompt is None:
            return Encoded(self.tokenizer.encode(texts, self.max_length, pairs), labels, self.tokenizer.pad)
        ids = self.prompt.encode(self.tokenizer, texts, pairs, self.max_length)
        return Encoded(ids, labels, self.tokenizer.pad, self.prompt.places(ids))

    def public_lines(self) -> Encoded:
        """Return sentences of public text, for centring: nothing private is in them."""
        return self.encode(public_sentences(self.public)[:PUBLIC_LINES])

    def public_inputs(self) -> Encoded:
        """Return public text in the form of the dataset's examples: sentences, or sentences with the next one."""
        lines = public_sentences(self.public)[:PUBLIC_LINES]
        return self.encode(lines[:-1], pairs=lines[1:]) if are_pairs(self.dataset) else self.encode(lines)

    def label_phrases(self) -> list[Encoded]:
        """Return the public phrases that the dataset declares, of each class in the order of its classes."""
        return [self.encode(self.plugin.extra["label_phrases"][name]) for name in self.classes]


def keys_of(texts: list[str], pairs: list[str] | None) -> list[str]:
    """Return a text that identifies each row."""
    return texts if pairs is None else [f"{a}\t{b}" for a, b in zip(texts, pairs, strict=True)]


def chosen_rows(rows: int, limit: int | None) -> np.ndarray:
    """Return the indices of `limit` rows, all where there are fewer: the same ones for every method and seed."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:limit])


def pooled(encoder: Encoder, batch: dict[str, Tensor]) -> Tensor:
    """Return [B, H] means over real tokens, fp32 or wider."""
    hidden = encoder(batch["input_ids"], batch["attention_mask"])
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def compared(first: Tensor, second: Tensor) -> Tensor:
    """Return [N, 2H] features of pairs from those of their texts [N, H]: product and distance, element by element."""
    return torch.cat([first * second, (first - second).abs()], dim=1)


def in_pieces(encoded: Encoded, budget: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Yield all examples in pieces of at most `budget` padded tokens."""
    for index in by_tokens(np.arange(len(encoded.ids)), encoded.lengths, budget):
        yield index, encoded.batch(index)


def features(encoder: Encoder, encoded: Encoded, budget: int, precision: str = "float32") -> Tensor:
    """Return [N, H] pooled features in fp32, without gradients, of a forward pass in a precision."""
    out = torch.empty(len(encoded.ids), encoder.width)
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        for index, batch in in_pieces(encoded, budget):
            with autocast(device, precision):
                out[torch.as_tensor(index)] = pooled(encoder, {k: v.to(device) for k, v in batch.items()}).float().cpu()
    return out

"""The task: prompts, model, losses and scores of a language model that goes on from prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpbench import plugins
from dpbench.data import asked
from dpbench.data import registry as datasets
from dpbench.data.asked import Asked
from dpbench.data.coding import Pieces
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.files import canonical_json
from dpbench.metrics import answers as answer_scores
from dpbench.models.decoding import generate
from dpbench.models.wrappers import LanguageModel, fuse_gelu
from dpbench.privacy.sampling import by_tokens
from dpbench.spec.sources import Source
from dpbench.tasks.forward import attention
from dpbench.tasks.holdout import share_of
from dpbench.tasks.language_model import WEIGHTS, coding_of, load_model, output_facts
from dpbench.tasks.prompt_completion.config import Settings
from dpbench.tasks.prompt_completion.rows import Rows, scores
from dpbench.tasks.text_classification.encoding import chosen_rows
from dpbench.training.run import TrainingTask

_AT_ONCE = 4  # times the tokens of a training batch: evaluation keeps nothing of a layer


class PromptTask(TrainingTask):
    """The rows of a dataset, and the model with its initial weights, the same for all methods of a seed.

    begin: ids that every prompt starts with; stop: the id that ends an answer: a model with published weights ends answers with
    a line, as in Malladi et al.; one of ours with <eos>, for it knows no lines.
    facts: for the record; warnings: of answers that were cut.

    Raises:
        DpbenchError: nothing to evaluate on; label words without a token, or longer than the input; what loading data, tokenizer
            and weights raises.
    """

    units = {"accuracy": "%", "f1": "%", "exact_match": "%", "loss": "nats"}  # noqa: RUF012

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        self._context = context
        model = context.sources[f"model:{settings.model_name}"]
        self.coding = cast(Pieces, coding_of(settings, context.sources))
        self.stop: int = self.coding.eos
        self.begin: list[int] = []
        if settings.weights is not None and model.kind != "scratch":
            self.stop = self.coding.ids("\n")[-1]
            bos = plugins.get("model", settings.weights).extra["architecture"].get("bos_token_id")
            self.begin = [] if bos is None else [bos]
        self.cut: Counter[str] = Counter()
        self.words = [] if settings.writes_answers else self._words()
        train, self.evaluated = self._split(context)
        examples = self._encoded(train)
        cut = self.cut["answer"]
        over_candidates = settings.loss == "candidates" and not settings.writes_answers
        self.examples = examples if over_candidates else examples.right()
        self.rows = len(self.examples)
        self.asked = self._encoded(self.evaluated)
        weights = context.artefact("start", WEIGHTS) if settings.start else None
        language_model = model_of(settings, self.coding.vocabulary, model, context.seed, weights=weights)
        self.model = fuse_gelu(language_model).to(self.device)
        if settings.clips and not settings.by_zeroth and self.examples.forms > 1:
            what = f"loss: candidates makes {self.examples.forms} inputs of an example of {settings.dataset}"
            hint = "take loss: tokens, or label words of one token each"
            raise DpbenchError(f"{what}, and method {settings.method} takes one", hint)
        self.facts = {
            "prompts_cut": self.cut["prompt"],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "vocabulary": self.coding.vocabulary,
            "tokenizer_sha256": self.coding.sha256,
        }
        if len(self.examples):
            mean = float(self.examples.lengths.mean()) / self.examples.forms
            self.facts |= {"example": "one row: its prompt, and how it goes on", "mean_tokens": mean, "answers_cut": cut}
        if cut:
            self.warnings.append(f"{cut} answers to train on were cut to {settings.answer_length} tokens")

    def _words(self) -> list[list[int]]:
        """Return the ids of each class' label words."""
        words = []
        texts = asked.label_words(self.settings.dataset, self.settings.label_words)
        for name, text in zip(datasets.classes(self.settings.dataset), texts, strict=True):
            ids = self.coding.ids(text)
            if not ids:
                raise DpbenchError(f"label_words: {text!r} of {name} has no token", "choose another word")
            if len(ids) >= self.settings.max_length:
                what = f"label_words: {text!r} of {name} has {len(ids)} tokens, max_length is {self.settings.max_length}"
                raise DpbenchError(what, "choose shorter words, or raise max_length")
            words.append(ids)
        if len({tuple(ids) for ids in words}) < len(words):
            raise DpbenchError("label_words: two classes have the same tokens", "choose words that the tokenizer distinguishes")
        return words

    def _split(self, context: Context) -> tuple[list[Asked], list[Asked]]:
        """Return (rows to train on, rows to evaluate on).

        The seed chooses the former among the train split's, by what each row holds.

        Guarantee: a row's place decides nothing. The chosen rows are the dataset; among all rows, removing a chosen one lets the
        next one in, as with `per_class` of text classification.
        """
        settings, source = self.settings, context.sources[f"dataset:{self.settings.dataset}"]
        rows = asked.load(settings.dataset, "train", source)
        keys = [canonical_json([row.prompt, row.label, *row.answers]) for row in rows]
        order = np.argsort([share_of(f"{context.seed} {key}".encode()) for key in keys], kind="stable")
        train = [rows[i] for i in np.sort(order[: settings.train_limit if settings.steps else 0])]
        if settings.evaluate_on == "train_rest":
            held_out = order[settings.train_limit :][: settings.evaluate_limit]
            evaluated = [rows[i] for i in np.sort(held_out)]
        else:
            evaluated = asked.load(settings.dataset, "validation", source)
            evaluated = [evaluated[i] for i in chosen_rows(len(evaluated), settings.evaluate_limit)]
        if not evaluated:
            raise DpbenchError(f"{settings.dataset} has no rows to evaluate on (evaluate_on: train_rest)", "lower train_limit")
        return train, evaluated

    def _encoded(self, rows: list[Asked]) -> Rows:
        """Return rows as token ids, those of an answer with its first one."""
        settings = self.settings
        room = settings.max_length - (settings.answer_length if settings.writes_answers else max(map(len, self.words)))
        prompts = [self._prompt(row.prompt, room) for row in rows]
        if settings.writes_answers:
            return Rows(prompts, [[self._answer(row.answers[0])] for row in rows], [0] * len(rows), self.coding.pad)
        return Rows(prompts, [self.words] * len(rows), [int(row.label or 0) for row in rows], self.coding.pad)

    def _prompt(self, text: str, room: int) -> list[int]:
        """Return its end, where it is longer than `room` tokens: the question comes last."""
        ids, begin = self.coding.ids(text), self.begin
        kept = ids[-(room - len(begin)) :] if room > len(begin) else []
        self.cut["prompt"] += len(kept) < len(ids)
        if not kept:
            raise DpbenchError(f"max_length {self.settings.max_length} leaves no room for a prompt", "raise it")
        return [*begin, *kept]

    def _answer(self, text: str) -> list[int]:
        ids = [*self.coding.ids(f" {text}"), self.stop]
        self.cut["answer"] += len(ids) > self.settings.answer_length
        return ids[: self.settings.answer_length]

    def physical(self, drawn: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Cut a logical batch into pieces of rows of similar length."""
        return by_tokens(drawn, self.examples.lengths, self.settings.token_budget)

    def batch(self, rows: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        return self.to_device(self.examples.batch(rows))

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B] cross entropies: over the candidates, or mean ones of the tokens of the right one."""
        with attention(self.device, self.settings.functional):
            values = scores(model, batch, trim=not self.settings.functional)
        return cross_entropy(values, batch["label"], reduction="none") if values.shape[1] > 1 else -values[:, 0]

    def evaluate(self) -> dict[str, float]:
        """Return metric -> its value over the evaluated rows: per cent, and the mean loss."""
        self.model.eval()
        self.facts["evaluated_rows"] = len(self.asked)
        return self._write() if self.settings.writes_answers else self._choose()

    def _choose(self) -> dict[str, float]:
        """Choose among the label words."""
        values = self._scores()
        label = torch.as_tensor(self.asked.label)
        picks = values.argmax(1).numpy()
        most = Counter(self.asked.label.tolist()).most_common(1)[0][1]
        self.facts["picks"] = np.bincount(picks, minlength=len(self.words)).tolist()
        self.facts["largest_class"] = 100 * most / len(self.asked)
        return {"accuracy": 100 * float((picks == self.asked.label).mean()), "loss": float(cross_entropy(values, label))}

    def _scores(self) -> Tensor:
        """Return [N, K] scores of the evaluated rows."""
        values = torch.zeros(len(self.asked), len(self.asked.candidates[0]))
        budget = _AT_ONCE * self.settings.token_budget
        with torch.inference_mode(), attention(self.device, self.settings.functional):
            for index in by_tokens(np.arange(len(self.asked)), self.asked.lengths, budget):
                values[index] = scores(self.model, self.to_device(self.asked.batch(index))).cpu()
        return values

    def _write(self) -> dict[str, float]:
        """Write an answer to each prompt."""
        with attention(self.device, self.settings.functional):
            answers = generate(
                self.model,  # type: ignore[arg-type]  # a LanguageModel
                self.asked.prompts,
                eos=self.stop,
                limit=self.settings.max_length,
                longest=self.settings.answer_length,
                banned=self.coding.banned,
                rows=self.settings.decoding_rows,
                device=self.device,
                done=lambda count: self._context.report(count, len(self.asked), "prompts answered"),
            )
        outputs = [self.coding.text((), ids) for ids in answers]
        right = [row.answers for row in self.evaluated]
        self.facts |= output_facts(outputs)
        return {
            "f1": answer_scores.f1(outputs, right),
            "exact_match": answer_scores.exact_match(outputs, right),
            "loss": -float(self._scores().mean()),
        }


def model_of(
    settings: Settings, vocabulary: int, source: Source, seed: int = 0, meta: bool = False, weights: Path | None = None
) -> LanguageModel:
    """Return the model.

    Args:
        vocabulary: V of a model of a size; source: of published weights; weights: of the public start.

    Raises:
        DpbenchError: the model has fewer positions than max_length; what loading weights raises.
    """
    dtype = getattr(torch, settings.dtype)
    model = load_model(settings, vocabulary, source, seed, meta, weights, dtype=dtype, tied=settings.tied)
    if model.context < settings.max_length:
        raise DpbenchError(f"max_length {settings.max_length}: {settings.weights} has {model.context} positions", "lower it")
    return model

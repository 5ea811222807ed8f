"""Prompts, model and evaluation of the prompted job. Imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from dpbench import plugins
from dpbench.data import asked, coding
from dpbench.data.asked import Asked
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, sha256_text
from dpbench.jobs.contract import Context
from dpbench.jobs.generation import pieces_of
from dpbench.jobs.language_model import WEIGHTS
from dpbench.jobs.prompted import model_named
from dpbench.jobs.rest import share_of
from dpbench.jobs.text import some
from dpbench.metrics import answers as scores_of_answers
from dpbench.models import registry as models
from dpbench.models.decoding import generate
from dpbench.models.wrappers import fuse_gelu
from dpbench.sampling import by_tokens
from dpbench.spec.sources import Source

if TYPE_CHECKING:
    from dpbench.jobs.prompted import Optimizer, Settings
    from dpbench.models.wrappers import LanguageModel

_POINTS = 4  # of a learning curve, beside its start
_AT_ONCE = 4  # times the tokens of a training batch: evaluation keeps nothing of a layer


class Rows:
    """Prompts as token ids, with the ways they may go on. prompts: of each row; candidates: of each row, one or more; label: [N]
    number of the right one; pad: an id.

    What is read of a candidate is all but its last token, so where all have one token their inputs are the same: `forms` is then
    1, and else the number of candidates.
    """

    def __init__(self, prompts: list[list[int]], candidates: list[list[list[int]]], label: Sequence[int], pad: int) -> None:
        self.prompts, self.candidates, self.label, self.pad = prompts, candidates, np.asarray(label), pad
        self.longest = np.asarray([max(map(len, own)) for own in candidates], dtype=np.int64)
        self.forms = 1 if (self.longest <= 1).all() else max(map(len, candidates))
        self.lengths = self.forms * (np.asarray([len(p) for p in prompts], dtype=np.int64) + self.longest - 1)

    def __len__(self) -> int:
        return len(self.prompts)

    def right(self) -> Rows:
        """With the right candidate of each row alone."""
        kept = [[own[label]] for own, label in zip(self.candidates, self.label, strict=True)]
        return Rows(self.prompts, kept, [0] * len(self), self.pad)

    def batch(self, index: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """input_ids [B, F, T] in F forms; at [B, F, A] positions whose logits are about a candidate's tokens; tokens and real
        [B, K, A] of the K candidates; label [B]."""
        chosen = [self.candidates[i] for i in index]
        forms, choices, ends = self.forms, len(chosen[0]), int(self.longest[index].max())
        inputs = [[self.prompts[i] + way[:-1] for way in own[:forms]] for i, own in zip(index, chosen, strict=True)]
        ids = torch.full((len(index), forms, max(len(form) for own in inputs for form in own)), self.pad)
        at = torch.zeros(len(index), forms, ends, dtype=torch.long)
        tokens = torch.zeros(len(index), choices, ends, dtype=torch.long)
        real = torch.zeros(len(index), choices, ends, dtype=torch.bool)
        for b, own in enumerate(inputs):
            begin = len(self.prompts[index[b]]) - 1
            for f, form in enumerate(own):
                ids[b, f, : len(form)] = torch.tensor(form)
                at[b, f] = torch.arange(begin, begin + ends).clamp(max=len(form) - 1)
            for k, way in enumerate(chosen[b]):
                tokens[b, k, : len(way)] = torch.tensor(way)
                real[b, k, : len(way)] = True
        return {"input_ids": ids, "at": at, "tokens": tokens, "real": real, "label": torch.as_tensor(self.label[index])}


def scores(model: nn.Module, batch: dict[str, Tensor], trim: bool = True) -> Tensor:
    """[B, K] mean log-likelihoods of the candidates' tokens, fp32.

    Args:
        trim: make no logits of the positions before the first that is asked for; looks at values, which vmap cannot.
    """
    (examples, forms, _), choices = batch["input_ids"].shape, batch["tokens"].shape[1]
    ids, at = batch["input_ids"].flatten(0, 1), batch["at"].flatten(0, 1)
    first = int(at.min()) if trim else 0
    logits = model(ids, first) if first else model(ids)
    picked = logits[torch.arange(len(ids), device=ids.device)[:, None], at - first]  # [B F, A, V]
    each = picked.float().log_softmax(-1).view(examples, forms, *picked.shape[1:])
    each = each.expand(-1, choices, -1, -1).gather(3, batch["tokens"][..., None])[..., 0]
    return (each * batch["real"]).sum(-1) / batch["real"].sum(-1)


class Task:
    """The rows of a dataset, and the model with its initial weights, the same for all methods of a seed.

    facts: for the record; warnings: of answers that were cut.

    Raises:
        DpbenchError: nothing to evaluate on; label words without a token, or longer than the input; what loading data, tokenizer
            and weights raises.
    """

    def __init__(self, settings: Settings, context: Context) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        model, public = context.sources[f"model:{model_named(settings)}"], context.sources[f"dataset:{coding.PUBLIC}"]
        self.marks = Marks(settings, model, public)
        self.cut: Counter[str] = Counter()
        self.words = [] if settings.answers else self._words()
        train, self.evaluated = self._split(context)
        rows = self._encoded(train)
        cut = self.cut["answer"]
        self.rows = rows if settings.by_choice else rows.right()
        self.asked = self._encoded(self.evaluated)
        weights = context.artefact("start", WEIGHTS) if settings.start else None
        made = model_of(settings, self.marks.coding.vocabulary, model, context.seed, weights=weights)
        self.model = fuse_gelu(made).to(self.device)
        if settings.engine != "nonprivate" and settings.plugin.kind == "engine" and self.rows.forms > 1:
            what = f"loss: candidates makes {self.rows.forms} inputs of an example of {settings.task}"
            way_out = "take loss: tokens, or label words of one token each"
            raise DpbenchError(f"{what}, and engine {settings.engine} takes one", way_out)
        self.facts: dict[str, Any] = {
            "prompts_cut": self.cut["prompt"],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "vocabulary": self.marks.coding.vocabulary,
            "tokenizer_sha256": self.marks.coding.sha256,
        }
        self.warnings: list[str] = []
        if len(self.rows):
            mean = float(self.rows.lengths.mean()) / self.rows.forms
            self.facts |= {"train_rows": len(self.rows), "mean_tokens": mean, "answers_cut": cut}
        if cut:
            self.warnings.append(f"{cut} answers to train on were cut to {settings.answer_length} tokens")

    def __len__(self) -> int:
        return len(self.rows)

    def _words(self) -> list[list[int]]:
        """Ids of each class' label words."""
        found = []
        given = asked.label_words(self.settings.task, self.settings.label_words)
        for name, text in zip(plugins.get("dataset", self.settings.task).extra["classes"], given, strict=True):
            ids = self.marks.coding.ids(text)
            if not ids:
                raise DpbenchError(f"label_words: {text!r} of {name} has no token", "choose another word")
            if len(ids) >= self.settings.max_length:
                what = f"label_words: {text!r} of {name} has {len(ids)} tokens, max_length is {self.settings.max_length}"
                raise DpbenchError(what, "choose shorter words, or raise max_length")
            found.append(ids)
        if len({tuple(ids) for ids in found}) < len(found):
            raise DpbenchError("label_words: two classes have the same tokens", "choose words that the tokenizer tells apart")
        return found

    def _split(self, context: Context) -> tuple[list[Asked], list[Asked]]:
        """(rows to train on, rows to evaluate on). The seed chooses the former among the train split's, by what each row holds.

        Guarantee: a row's place decides nothing. The chosen rows are the dataset; among all rows, removing a chosen one lets the
        next one in, as with `per_class` of `training.Split`.
        """
        settings, source = self.settings, context.sources[f"dataset:{self.settings.task}"]
        whole = asked.load(settings.task, "train", source)
        keys = [canonical_json([row.prompt, row.label, *row.answers]) for row in whole]
        order = np.argsort([share_of(f"{context.seed} {key}".encode()) for key in keys], kind="stable")
        train = [whole[i] for i in np.sort(order[: settings.train_limit if settings.steps else 0])]
        if settings.evaluate_on == "train_rest":
            rest = order[settings.train_limit :][: settings.evaluate_limit]
            evaluated = [whole[i] for i in np.sort(rest)]
        else:
            evaluated = asked.load(settings.task, "validation", source)
            evaluated = [evaluated[i] for i in some(len(evaluated), settings.evaluate_limit)]
        if not evaluated:
            raise DpbenchError(f"{settings.task} has no rows to evaluate on (evaluate_on: train_rest)", "lower train_limit")
        return train, evaluated

    def _encoded(self, rows: list[Asked]) -> Rows:
        """Rows as token ids, those of an answer with its first one."""
        settings = self.settings
        room = settings.max_length - (settings.answer_length if settings.answers else max(map(len, self.words)))
        prompts = [self._prompt(row.prompt, room) for row in rows]
        if settings.answers:
            return Rows(prompts, [[self._answer(row.answers[0])] for row in rows], [0] * len(rows), self.marks.coding.pad)
        return Rows(prompts, [self.words] * len(rows), [int(row.label or 0) for row in rows], self.marks.coding.pad)

    def _prompt(self, text: str, room: int) -> list[int]:
        """Its end, where it is longer than `room` tokens: the question stands there."""
        ids, begin = self.marks.coding.ids(text), self.marks.begin
        kept = ids[-(room - len(begin)) :] if room > len(begin) else []
        self.cut["prompt"] += len(kept) < len(ids)
        if not kept:
            raise DpbenchError(f"max_length {self.settings.max_length} leaves no room for a prompt", "raise it")
        return [*begin, *kept]

    def _answer(self, text: str) -> list[int]:
        ids = [*self.marks.coding.ids(f" {text}"), self.marks.stop]
        self.cut["answer"] += len(ids) > self.settings.answer_length
        return ids[: self.settings.answer_length]

    def physical(self, drawn: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Pieces of a logical batch, by length."""
        return by_tokens(drawn, self.rows.lengths, self.settings.token_budget)

    def batch(self, rows: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        return self._there(self.rows.batch(rows))

    def _there(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in batch.items()}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """[B] cross entropies: over the candidates, or mean ones of the right one's own tokens."""
        with self.around():
            found = scores(model, batch, trim=self.settings.engine != "vmap")
        return cross_entropy(found, batch["label"], reduction="none") if found.shape[1] > 1 else -found[:, 0]

    @contextmanager
    def around(self) -> Iterator[None]:
        """On the CPU, and under vmap, plain products for attention: its fused kernel is slow on short texts, or has no rule."""
        plain = self.device.type == "cpu" or self.settings.engine == "vmap"
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            yield

    def evaluate(self, context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """(metric -> its value over the evaluated rows: per cent, and the mean loss; facts)."""
        self.model.eval()
        return self._written(context) if self.settings.answers else self._chosen()

    def _chosen(self) -> tuple[dict[str, float], dict[str, Any]]:
        found = self._scored()
        label = torch.as_tensor(self.asked.label)
        picks = found.argmax(1).numpy()
        most = Counter(self.asked.label.tolist()).most_common(1)[0][1]
        facts = {
            "picks": np.bincount(picks, minlength=len(self.words)).tolist(),
            "largest_class": 100 * most / len(self.asked),
        }
        return {"accuracy": 100 * float((picks == self.asked.label).mean()), "loss": float(cross_entropy(found, label))}, facts

    def _scored(self) -> Tensor:
        """[N, K] scores of the evaluated rows."""
        found = torch.zeros(len(self.asked), len(self.asked.candidates[0]))
        budget = _AT_ONCE * self.settings.token_budget
        with torch.inference_mode(), self.around():
            for index in by_tokens(np.arange(len(self.asked)), self.asked.lengths, budget):
                found[index] = scores(self.model, self._there(self.asked.batch(index))).cpu()
        return found

    def _written(self, context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        with self.around():
            found = generate(
                self.model,  # type: ignore[arg-type]  # a LanguageModel
                self.asked.prompts,
                eos=self.marks.stop,
                limit=self.settings.max_length,
                longest=self.settings.answer_length,
                banned=self.marks.coding.banned,
                rows=self.settings.decoding_rows,
                device=self.device,
                done=lambda count: context.report(count, len(self.asked), "prompts answered"),
            )
        outputs = [self.marks.coding.text((), ids) for ids in found]
        right = [row.answers for row in self.evaluated]
        facts = {
            "empty_outputs": sum(not text for text in outputs),
            "different_outputs": len(set(outputs)),
            "outputs_sha256": sha256_text(canonical_json(outputs)),
        }
        metrics = {"f1": scores_of_answers.f1(outputs, right), "exact_match": scores_of_answers.exact_match(outputs, right)}
        return metrics | {"loss": -float(self._scored().mean())}, facts


class Marks:
    """A model's tokenizer with its marks. begin: ids that every prompt starts with; stop: the id that ends an answer.

    A model with published weights ends answers with a line, as in Malladi et al.; one of ours with <eos>, for it knows no lines.
    """

    def __init__(self, settings: Settings, model: Source, public: Source) -> None:
        self.begin: list[int] = []
        self.coding = self._coding(settings, model, public)
        self.stop: int = self.coding.eos
        if settings.weights is not None and model.kind != "scratch":
            self.stop = self.coding.ids("\n")[-1]
            bos = plugins.get("model", settings.weights).extra["architecture"].get("bos_token_id")
            self.begin = [] if bos is None else [bos]

    @staticmethod
    def _coding(settings: Settings, model: Source, public: Source) -> coding.Pieces:
        if settings.weights is not None:
            return pieces_of(settings.weights, model, public)
        made = coding.coding("pieces", settings.task, settings.vocabulary, public)
        assert isinstance(made, coding.Pieces)
        return made


class Curve:
    """Scores of the evaluated rows along training. points: [step, %] of the first metric, `last` all of the last ones; of
    answers, which take long to write, at the end alone."""

    def __init__(self, task: Task, steps: int, context: Context) -> None:
        self._task, self._steps, self._context = task, steps, context
        self._every = max(1, steps if task.settings.answers else steps // _POINTS)
        self.points: list[list[float]] = []
        self.last: dict[str, float] = {}
        self._facts: dict[str, Any] = {}

    def __call__(self, done: int) -> None:
        """After step `done`: looks at the released weights alone, and leaves the model as it was."""
        if done % self._every and done != self._steps:
            return
        self.last, self._facts = self._task.evaluate(self._context)
        self._task.model.train()
        self.points.append([done, next(iter(self.last.values()))])

    @property
    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {"evaluated_rows": len(self._task.asked), "curve": self.points, **self._facts}


def model_of(
    settings: Settings, vocabulary: int, source: Source, seed: int = 0, meta: bool = False, weights: Path | None = None
) -> LanguageModel:
    """The model.

    Args:
        vocabulary: V of a model of a size; source: of published weights; weights: of the public start.

    Raises:
        DpbenchError: the model has fewer positions than max_length; what loading weights raises.
    """
    from safetensors.torch import load_file

    dtype = getattr(torch, settings.dtype)
    if settings.weights is not None:
        made = models.pretrained_language_model(settings.weights, source, seed, meta, dtype, settings.tied)
        if made.context < settings.max_length:
            raise DpbenchError(f"max_length {settings.max_length}: {settings.weights} has {made.context} positions", "lower it")
        return made
    assert settings.size is not None
    positions = settings.start.tokens if settings.start else settings.max_length
    made = models.language_model(settings.size, seed, settings.tied, dtype, meta, vocabulary, positions)
    if weights is not None:
        made.load_state_dict(load_file(weights))
    return made


def optimizer(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Of all weights."""
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[settings.name]
    return kind(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

"""Datasets as prompts that a language model continues. Never imports torch.

Such a dataset declares a `completion_prompt`, a template of its columns without a space at its end (see
`dpbench.plugins.cards.rendered`). A dataset of task `classification` declares its `label_words` (class -> how the prompt
continues). A dataset of task `question_answering` has a column `answers`: a text, a list of texts, or, where it declares
`answers_key`, a struct with the list of texts under that key. The first of them is trained on.

A Python plug-in may define functions in place of the two keys: `prompts(columns) -> list[str]`, and
`answers(columns) -> list[tuple[str, ...]]`, one item a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpbench import plugins
from dpbench.data import registry
from dpbench.data.triples import LEAVE_OUT, by_row, texts
from dpbench.errors import DpbenchError
from dpbench.plugins import Plugin
from dpbench.plugins.cards import rendered
from dpbench.spec.sources import Source

ANSWERS = "question_answering"


@dataclass(frozen=True)
class Asked:
    """One example as a prompt.

    Attributes:
        prompt: what the model reads.
        label: the number of the right class; None where an answer is written.
        answers: the right answers; empty where there is a label.
    """

    prompt: str
    label: int | None = None
    answers: tuple[str, ...] = ()


def _promptable(plugin: Plugin) -> bool:
    return "label_words" in plugin.extra or plugin.extra["task"] == ANSWERS


def require(name: str) -> bool:
    """Return whether the rows of a dataset have free answers, rather than one of its label words.

    Raises:
        DpbenchError: the dataset is unknown, or has no prompts; the error names those that do.
    """
    plugin = plugins.get("dataset", name)
    if not _promptable(plugin):
        known = [p.name for p in plugins.discover("dataset").values() if _promptable(p)]
        raise DpbenchError(f"dataset {name} has no prompts for a language model", f"take one of {', '.join(known)}")
    return bool(plugin.extra["task"] == ANSWERS)


def label_words(name: str, replacement: Mapping[str, str] | None = None) -> list[str]:
    """Return how a prompt continues for each class, in the order of the classes.

    Args:
        replacement: label words to use in place of the dataset's.

    Raises:
        DpbenchError: a class has no words, or words belong to no class, are blank or the same for two classes.
    """
    plugin = plugins.get("dataset", name)
    classes: list[str] = plugin.extra["classes"]
    words_of_class = plugin.extra["label_words"] if replacement is None else replacement
    if set(words_of_class) != set(classes):
        raise DpbenchError(
            f"label_words of {name} name {', '.join(words_of_class) or 'no class'}", f"its classes are {', '.join(classes)}"
        )
    for label, text in words_of_class.items():
        if not text.strip():
            raise DpbenchError(f"label_words of {name}: those of {label} are empty", "give a word or more")
    if len(set(words_of_class.values())) < len(classes):
        raise DpbenchError(f"label_words of {name}: two classes have the same", "give each class other words")
    return [words_of_class[label] for label in classes]


def load(name: str, split: str, source: Source) -> list[Asked]:
    """Return the rows of a split.

    Raises:
        DpbenchError: the dataset has no prompts; a row has no answers (the error names it); what `registry.load` raises.
    """
    has_answers = require(name)
    plugin = plugins.get("dataset", name)
    columns: dict[str, Any] = registry.load(name, split, source).columns
    where = registry.named(plugin, split, source)
    prompts = by_row(where, columns, plugin.function("prompts") or (lambda part: _prompts(plugin, part)))
    if not has_answers:
        return [Asked(prompt, int(label)) for prompt, label in zip(prompts, columns["label"], strict=True)]
    answers_of = plugin.function("answers") or (lambda part: _answers(plugin, part))
    answers = by_row(where, columns, lambda part: [_nonblank(row) for row in answers_of(part)])
    return [Asked(prompt, answers=right_answers) for prompt, right_answers in zip(prompts, answers, strict=True)]


def _prompts(plugin: Plugin, columns: dict[str, Any]) -> list[str]:
    """Return the prompt of each row by the template of the dataset."""
    template: str = plugin.extra["completion_prompt"]
    return [rendered(template, dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _answers(plugin: Plugin, columns: dict[str, Any]) -> list[tuple[str, ...]]:
    column, key = plugin.extra["columns"]["answers"], plugin.extra.get("answers_key", "")
    return [(value,) if isinstance(value, str) and not key else texts(column, value, key) for value in columns["answers"]]


def _nonblank(answers: tuple[str, ...]) -> tuple[str, ...]:
    right_answers = tuple(text.strip() for text in answers if text.strip())
    if not right_answers:
        raise DpbenchError("no answer", LEAVE_OUT)
    return right_answers

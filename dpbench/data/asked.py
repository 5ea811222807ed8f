"""Datasets as prompts that a language model goes on from. Never imports torch.

Such a dataset has a function `prompts(columns) -> list[str]`, one prompt a row, without a space at its end. One of task
`classification` names in `PLUGIN` its `label_words` (class -> how the prompt goes on); one of task `question_answering` has a
function `answers(columns) -> list[tuple[str, ...]]`: of each row one or more right texts, the first of which is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpbench import plugins
from dpbench.data import registry
from dpbench.data.triples import LEAVE_OUT, by_row
from dpbench.errors import DpbenchError
from dpbench.plugins import Plugin
from dpbench.spec.sources import Source

ANSWERS = "question_answering"


@dataclass(frozen=True)
class Asked:
    """prompt: what the model reads; label: number of the right class, None where an answer is written; answers: right ones."""

    prompt: str
    label: int | None = None
    answers: tuple[str, ...] = ()


def _promptable(plugin: Plugin) -> bool:
    return "label_words" in plugin.extra or plugin.extra["task"] == ANSWERS


def require(name: str) -> bool:
    """Whether a dataset's rows are answered in words of their own, rather than by one of its label words.

    Raises:
        DpbenchError: unknown, or it has no prompts; names those that do.
    """
    plugin = plugins.get("dataset", name)
    if not _promptable(plugin):
        known = [p.name for p in plugins.discover("dataset").values() if _promptable(p)]
        raise DpbenchError(f"dataset {name} has no prompts for a language model", f"take one of {', '.join(known)}")
    return bool(plugin.extra["task"] == ANSWERS)


def label_words(name: str, own: Mapping[str, str] | None = None) -> list[str]:
    """How a prompt goes on for each class, in the order of the classes.

    Args:
        own: in place of the dataset's.

    Raises:
        DpbenchError: a class without words, words of no class, blank or equal ones.
    """
    plugin = plugins.get("dataset", name)
    classes: list[str] = plugin.extra["classes"]
    given = plugin.extra["label_words"] if own is None else own
    if set(given) != set(classes):
        raise DpbenchError(
            f"label_words of {name} name {', '.join(given) or 'no class'}", f"its classes are {', '.join(classes)}"
        )
    for label, text in given.items():
        if not text.strip():
            raise DpbenchError(f"label_words of {name}: those of {label} are empty", "give a word or more")
    if len(set(given.values())) < len(classes):
        raise DpbenchError(f"label_words of {name}: two classes have the same", "they cannot be told apart")
    return [given[label] for label in classes]


def load(name: str, split: str, source: Source) -> list[Asked]:
    """The rows of a split.

    Raises:
        DpbenchError: a dataset without prompts; a row without answers, which is named; what `registry.load` raises.
    """
    answered = require(name)
    plugin = plugins.get("dataset", name)
    columns: dict[str, Any] = registry.load(name, split, source).columns
    where, module = registry.named(plugin, split, source), plugin.load()
    prompts: list[str] = by_row(where, columns, module.prompts)
    if not answered:
        return [Asked(prompt, int(label)) for prompt, label in zip(prompts, columns["label"], strict=True)]
    answers = by_row(where, columns, lambda some: [_right(texts) for texts in module.answers(some)])
    return [Asked(prompt, answers=right) for prompt, right in zip(prompts, answers, strict=True)]


def _right(texts: tuple[str, ...]) -> tuple[str, ...]:
    right = tuple(text.strip() for text in texts if text.strip())
    if not right:
        raise DpbenchError("no answer", LEAVE_OUT)
    return right

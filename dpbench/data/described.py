"""Table-to-text datasets, and summaries, in one form: fields in, sentences out. Never imports torch.

The columns of a dataset of task `table_to_text`, or of task `summary`, say what its rows are. Its fields are `triples` (subject,
relation, object), or `text_input`, which is `slot[value], slot[value]` where the dataset declares `slots`, and else one field, a
text under the name of its column. Its texts are `annotations` (see `dart`), or `references`, a list, and `text` where that is
empty. A Python plug-in may define `described(columns) -> list[Described]` instead, one item a row.

A dataset may declare `slots` (name -> the values of a closed slot, None for an open one), where they are public and the same in
every row, and `words`, the words of its subject. None of them may come from the rows, because a tokenizer is built from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dpbench import plugins
from dpbench.data import registry
from dpbench.data.remarks import remark
from dpbench.data.triples import LEAVE_OUT, by_row, slots, texts, triples
from dpbench.errors import DpbenchError
from dpbench.plugins import Plugin
from dpbench.spec.sources import Source

TASK = "table_to_text"
TASKS = (TASK, "summary")

Field = tuple[str, ...]
"""(slot, value), or (subject, relation, object)."""


@dataclass(frozen=True)
class Described:
    """An input and its texts.

    Attributes:
        fields: what the texts must express.
        texts: one or more sentences that people wrote for the fields; blank ones are left out.
    """

    fields: tuple[Field, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(text for text in self.texts if text.strip()))
        if not self.fields or not self.texts:
            missing = "texts" if self.fields else "fields"
            raise DpbenchError(f"an input without {missing}: {self}", LEAVE_OUT)


def load(name: str, split: str, source: Source) -> list[Described]:
    """Return the rows of a split.

    Raises:
        DpbenchError: the dataset is not of `TASKS`; a row has no fields, no texts or another form (the error names it); what
            `registry.load` raises.
    """
    plugin = plugins.get("dataset", name)
    require(plugin.name)
    columns = registry.load(name, split, source).columns
    describe: Callable[[Any], list[Described]] = plugin.function("described") or (lambda part: _described(plugin, part))
    rows = by_row(registry.named(plugin, split, source), columns, describe)
    blank = sum(not any(part.strip() for part in row.fields[0]) or not row.fields[0][-1].strip() for row in rows)
    if blank:
        remark(f"{registry.title(plugin, split)}: {blank} of {len(rows)} inputs are empty")
    return rows


def _described(plugin: Plugin, columns: dict[str, list[Any]]) -> list[Described]:
    """Return the fields and texts of each row by the columns that the dataset has."""
    names: dict[str, str] = plugin.extra["columns"]
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [Described(_fields(plugin, names, row), _texts(names, row)) for row in rows]


def _fields(plugin: Plugin, names: dict[str, str], row: dict[str, Any]) -> tuple[Field, ...]:
    if "triples" in row:
        return triples(names["triples"], row["triples"])
    if "slots" in plugin.extra:
        return slots(names["text_input"], row["text_input"], plugin.extra["slots"])
    return ((names["text_input"], row["text_input"].replace("\r\n", "\n")),)


def _texts(names: dict[str, str], row: dict[str, Any]) -> tuple[str, ...]:
    if "annotations" in row:
        return texts(names["annotations"], row["annotations"], "text")
    references = texts(names["references"], row["references"]) if "references" in row else ()
    return references or (row["text"],)


def require(name: str) -> None:
    """Require a dataset of `TASKS`.

    Raises:
        DpbenchError: its task is none of `TASKS`; the error names the datasets that can be used.
    """
    task = plugins.get("dataset", name).extra["task"]
    if task not in TASKS:
        known = [p.name for p in plugins.discover("dataset").values() if p.extra["task"] in TASKS]
        raise DpbenchError(f"dataset {name} is for {task}, not {' or '.join(TASKS)}", f"take one of {', '.join(known)}")


def one_text_each(rows: Iterable[Described]) -> list[Described]:
    """Return one row for each text: the examples to train on, and the unit of privacy.

    Guarantee: rows with a single text are unchanged, so there one row of the file is one example.
    """
    return [Described(row.fields, (text,)) for row in rows for text in row.texts]


def grouped(rows: Iterable[Described]) -> list[Described]:
    """Return the inputs in order of first appearance, each with all its different texts: the examples to evaluate on."""
    texts: dict[tuple[Field, ...], dict[str, None]] = {}
    for row in rows:
        texts.setdefault(row.fields, {}).update(dict.fromkeys(row.texts))
    return [Described(fields, tuple(different)) for fields, different in texts.items()]


def linear(fields: Iterable[Field]) -> str:
    """Return an input as text: `name : The Mill | area : riverside`."""
    return " | ".join(" : ".join(field) for field in fields)

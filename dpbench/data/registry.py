"""Datasets by name: the source of each, and its examples. Never imports torch.

A dataset is one plug-in, as a rule a YAML card: one file in `data/cards`, or in a folder of plug-ins. `python -m dpbench new
dataset NAME` writes one to start from. Its keys:

- `task`: `classification`, `image_classification`, `language_modelling`, `question_answering`, `summary` or `table_to_text`;
- `classes`: the names of the classes, in the order of their numbers, where there is a column `label`;
- `folder`, and `files` (split -> file) in it: Parquet, CSV (`.csv`), tab-separated text (`.tsv`) or JSON lines (`.jsonl`);
  `may_lack`: splits that known copies are without;
- `columns` (canonical name -> column of the file): `text...` are strings, `label` class numbers, `label_...` yes-or-no
  attributes, together `labels`, `image` bytes;
- `image`: channels, height and width of images, and `fit` where images of another size are cut and resized to that;
- `hub`: repo, revision, files (split -> file) and, where it is known, `sha256` (file -> sum); without a pinned revision, `why`;
- `embedded`: the name of a generated stand-in, one of `data/synthetic`;
- `rows` (split -> rows of the official split) and `notes` (kind of source -> what to know of that copy): printed beside numbers
  that were computed on fewer rows, or on another source;
- `licence` and `citation`;
- for prompts: `prompt` (`template` and `words`, class -> word) of masked language models, `label_phrases` of label-word heads,
  and `completion_prompt`, `label_words` and `answers_key`, which the module `asked` describes;
- for the tasks `table_to_text` and `summary`: `slots` and `words`, which the module `described` describes.

A dataset that no template describes is a Python plug-in: a literal `PLUGIN` with the same keys, and functions, which `asked` and
`described` name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dpbench import plugins
from dpbench.data import hub, images, labels, local, tabular
from dpbench.data.synthetic import StandIn, stand_in
from dpbench.errors import DpbenchError, unknown
from dpbench.plugins import Plugin
from dpbench.spec.sources import Source

KINDS = ("local", "hub", "embedded")


@dataclass(frozen=True)
class Examples:
    """The rows of one split.

    Attributes:
        columns: canonical name -> one value an example; `image` is uint8 [N, C, H, W].
    """

    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def _title(plugin: Plugin) -> str:
    return plugin.summary.split(":")[0]


def _stand_in(plugin: Plugin) -> StandIn:
    return stand_in(plugin.extra["embedded"], str(plugin.path))


def _why_not(plugin: Plugin, kind: str) -> str:
    """Return why a kind of source cannot serve the dataset; empty where it can."""
    if kind == "local":
        return local.why_not(plugin)
    if kind == "hub":
        spec = plugin.extra.get("hub")
        return hub.why_not(spec, spec["files"].values() if spec else (), "dataset")
    if not plugin.extra.get("embedded"):
        return "it has no embedded stand-in"
    _stand_in(plugin)  # raises where there is none of that name
    return ""


def _source(plugin: Plugin, kind: str) -> Source:
    if kind == "local":
        return Source(kind="local", files=local.files(plugin), says=f"{_title(plugin)}, from the local data folder")
    if kind == "hub":
        spec = plugin.extra["hub"]
        says = f"{_title(plugin)}, from the hub: {spec['repo']} at {spec['revision'][:12]}"
        return Source(kind="hub", revision=spec["revision"], says=says)
    what = "images" if "image" in plugin.extra else "text"
    says = f"generated {what} in place of {_title(plugin)} (embedded `{plugin.extra['embedded']}`, synthetic)"
    return Source(kind="embedded", revision=f"v{_stand_in(plugin).version}", synthetic=True, says=says)


def resolve(name: str, kind: str = "auto") -> Source:
    """Return the source of a dataset: its local folder, the hub at a pinned revision, or the embedded stand-in.

    Args:
        kind: one of `KINDS`, which must be there, or `auto` for the first of them that is there.

    Raises:
        DpbenchError: the dataset or kind is unknown; that kind is not there; a local dataset is incomplete or damaged.
    """
    plugin = plugins.get("dataset", name)
    if kind not in ("auto", *KINDS):
        raise unknown("source", kind, ("auto", *KINDS), f"dataset {name}")
    reasons = {}
    for candidate in KINDS if kind == "auto" else (kind,):
        reasons[candidate] = _why_not(plugin, candidate)
        if not reasons[candidate]:
            return _source(plugin, candidate)
    spelled = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
    raise DpbenchError(f"dataset {name}: not found ({spelled})", "set DPBENCH_DATA to a folder that holds it, or ask for `auto`")


def where(name: str) -> list[str]:
    """Return one line for each kind of source, for `dpbench doctor`: whether it has the dataset, and if not why."""
    plugin = plugins.get("dataset", name)
    lines = []
    for kind in KINDS:
        try:
            reason = _why_not(plugin, kind)
            lines.append(f"{kind}: {reason or 'found: ' + _source(plugin, kind).says}")
        except DpbenchError as error:
            lines.append(f"{kind}: {error.what}")
    return lines


def path(name: str, split: str, source: Source) -> Path:
    """Return the file of a split, and fetch it where it is not there yet.

    Raises:
        DpbenchError: the file is gone, damaged or changed since the runs were named.
    """
    plugin = plugins.get("dataset", name)
    if source.kind == "local":
        name = plugin.extra["files"][split]
        return local.path_of(plugin, name, source.files.get(name))
    spec = plugin.extra["hub"]
    if source.revision != spec["revision"]:
        what = f"dataset {plugin.name}: its runs were named at hub revision {source.revision}, now {spec['revision']} is pinned"
        raise DpbenchError(what, "name the runs again (start the command once more)")
    return hub.fetch(spec, spec["files"][split], "dataset")


def title(plugin: Plugin, split: str) -> str:
    """Return the name of a split in remarks. It has no path, because records keep remarks and hold no paths of a machine."""
    return f"dataset {plugin.name}, split {split!r}"


def named(plugin: Plugin, split: str, source: Source) -> str:
    """Return the name of a split in errors, with its file where it has one."""
    where = source.kind if source.kind == "embedded" else path(plugin.name, split, source)
    return f"{title(plugin, split)} ({where})"


def _splits(plugin: Plugin, source: Source) -> tuple[str, ...]:
    if source.kind not in KINDS:
        raise unknown("source", source.kind, KINDS, f"dataset {plugin.name}")
    if source.kind == "embedded":
        return tuple(_stand_in(plugin).splits)
    return tuple(plugin.extra["files"] if source.kind == "local" else plugin.extra["hub"]["files"])


def _generated(plugin: Plugin, split: str, source: Source) -> dict[str, list[Any]]:
    version = _stand_in(plugin).version
    if source.revision != f"v{version}":
        what = f"dataset {plugin.name}: its runs were named with generator {source.revision}, this is v{version}"
        raise DpbenchError(what, "name the runs again (start the command once more)")
    columns = _generated_once(plugin.extra["embedded"], split)
    return {canonical: list(columns[canonical]) for canonical in plugin.extra["columns"]}


@lru_cache(maxsize=8)
def _generated_once(name: str, split: str) -> dict[str, list[Any]]:
    """Return a split of a stand-in. It is kept, because a run reads it several times."""
    return stand_in(name).generate(split)


def load(name: str, split: str, source: Source, limit: int | None = None) -> Examples:
    """Return the first `limit` examples of a split, from the source that the run was named with.

    Rows of label -1 among others have no label and are left out; a remark says how many.

    Returns:
        Columns under canonical names: classification `text`, for pairs `text_pair`, `label`; language modelling `text`; images
        `image`, `label`; table to text: see `described`.

    Raises:
        DpbenchError: the split is unknown; a file of the dataset is gone, damaged or changed since; a column or value is missing,
            of the wrong kind or out of range (the error names file, column and row).
    """
    plugin = plugins.get("dataset", name)
    if split not in _splits(plugin, source):
        raise unknown("split", split, _splits(plugin, source), f"dataset {name} ({source.kind})")
    columns: dict[str, Any]
    where = named(plugin, split, source)
    if source.kind == "embedded":
        columns = _generated(plugin, split, source)
    else:
        _check_once(plugin.name, source.model_dump_json())
        file = path(name, split, source)
        columns = tabular.read(file, plugin.extra["columns"])
        if "label" in columns and "classes" in plugin.extra:
            labels.check_names(file, plugin.extra["columns"]["label"], plugin.extra["classes"])
    rows: list[int] | None = None
    total = len(next(iter(columns.values())))
    if "label" in columns and "classes" in plugin.extra:
        columns, rows, unlabelled = _with_labels(where, columns, plugin.extra["classes"], limit)
        labels.remark_oddities(title(plugin, split), columns, plugin.extra["classes"], unlabelled, total)
    for key in (label_columns := attributes(name)):
        labels.check_attribute(f"{where}, {plugin.extra['columns'][key]}", columns[key])
    columns = {key: values[:limit] for key, values in columns.items()}
    if label_columns:
        columns["labels"] = np.stack([np.asarray(columns.pop(key), dtype=np.uint8) for key in label_columns], axis=1)
    if "image" in columns:
        columns["image"] = images.decode(columns["image"], plugin.extra["image"], where, rows, title(plugin, split))
    return Examples(columns)


def _with_labels(
    where: str, columns: dict[str, Any], classes: list[str], limit: int | None
) -> tuple[dict[str, Any], list[int] | None, int]:
    """Return the first `limit` rows that have a label, their numbers in the file, and how many rows have no label.

    The numbers are None where all rows have a label.

    Raises:
        DpbenchError: no row has a label, or a label is out of range.
    """
    total = len(columns["label"])
    labelled_rows = labels.labelled(where, columns["label"], classes)
    if not labelled_rows:
        raise labels.no_labels(where)
    if len(labelled_rows) == total:
        return {key: values[:limit] for key, values in columns.items()}, None, 0
    return (
        {key: [values[row] for row in labelled_rows[:limit]] for key, values in columns.items()},
        labelled_rows,
        total - len(labelled_rows),
    )


@cache
def _check_once(name: str, source: str) -> None:
    """Check all files of a dataset before the first is read: else a damaged split would be noticed only at evaluation."""
    check(name, Source.model_validate_json(source))


def classes(name: str) -> list[str]:
    """Return the classes of a classification dataset, in the order of their numbers."""
    return list(plugins.get("dataset", name).extra["classes"])


def attributes(name: str) -> list[str]:
    """Return the canonical columns of a dataset's yes-or-no attributes, `label_...`; empty where an example has one class."""
    return [key for key in plugins.get("dataset", name).extra["columns"] if key.startswith("label_")]


def check(name: str, source: Source) -> dict[str, int]:
    """Check the available files: schemas, labels, and the texts of every split but `train`, which every job reads first anyway.

    Nothing is downloaded, nothing is generated, no image is decoded.

    Returns:
        Split -> the number of rows; of a classification dataset, of rows with a label. Splits of the hub that are not in its
        cache yet are left out.

    Raises:
        DpbenchError: a file is gone, changed or damaged; a column is missing or of the wrong type; a value is missing, not UTF-8
            or out of range (the error names its row). A test split may have no labels.
    """
    plugin = plugins.get("dataset", name)
    rows = {}
    for split in _splits(plugin, source):
        if source.kind == "embedded":
            continue
        if source.kind == "hub":
            spec = plugin.extra["hub"]
            if hub.cached(spec["repo"], spec["files"][split], spec["revision"], "dataset") is None:
                continue
        rows[split] = _checked_rows(plugin, split, source)
    return rows


def _checked_rows(plugin: Plugin, split: str, source: Source) -> int:
    """Check a file and return its number of rows, or of rows with a label where it has any."""
    file, columns = path(plugin.name, split, source), plugin.extra["columns"]
    rows = tabular.check(file, columns)
    checked_columns = {key: column for key, column in columns.items() if not key.startswith("image")}
    if split == "train":
        checked_columns = {key: column for key, column in checked_columns.items() if key == "label"}
    values = tabular.read(file, checked_columns) if checked_columns else {}
    for key in attributes(plugin.name):
        if key in values:
            labels.check_attribute(f"{named(plugin, split, source)}, {columns[key]}", values[key])
    if "label" not in values or "classes" not in plugin.extra:
        return rows
    where, classes = named(plugin, split, source), plugin.extra["classes"]
    labels.check_names(file, columns["label"], classes)
    labelled_rows = labels.labelled(where, values["label"], classes)
    if not labelled_rows and not split.startswith("test"):
        raise labels.no_labels(where)
    return len(labelled_rows) or rows

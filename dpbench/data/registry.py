"""Datasets by name: where each comes from, and its examples. Never imports torch.

A dataset is one file in this folder with a literal `PLUGIN`: `task`, `classes` (classification), `folder` and `files`
(split -> file) in the local folder, `columns` (canonical name -> column; `text...` are strings, `label` class numbers,
`label_...` yes-or-no attributes, together `labels`, `image` bytes), `hub` (repo, revision, files) or None, `embedded` (a module
of `data/embedded`) or None, `licence`, `citation`; `may_lack` (splits that known copies are without). Images have `image`
(channels, height, width; `fit` where others are cut and resized to that); what the tasks `table_to_text` and `summary` add stands
in `described`. `rows` (split -> rows of the official split) and `notes` (kind of source -> what to know of that copy) stand
beside numbers that were made with less, or with something else.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpbench import plugins
from dpbench.data import hub, images, local, parquet
from dpbench.errors import DpbenchError, unknown
from dpbench.plugins import Plugin
from dpbench.spec.sources import Source

KINDS = ("local", "hub", "embedded")


@dataclass(frozen=True)
class Examples:
    """Rows of one split. columns: canonical name -> one value an example; `image`: uint8 [N, C, H, W]."""

    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def _title(plugin: Plugin) -> str:
    return plugin.summary.split(":")[0]


def _generator(plugin: Plugin) -> ModuleType:
    return importlib.import_module(f"dpbench.data.embedded.{plugin.extra['embedded']}")


def _why_not(plugin: Plugin, kind: str) -> str:
    """Empty where the dataset can come from there, else the reason it cannot."""
    if kind == "local":
        return local.why_not(plugin)
    if kind == "hub":
        spec = plugin.extra.get("hub")
        return hub.why_not(spec, spec["files"].values() if spec else (), "dataset")
    return "" if plugin.extra.get("embedded") else "it has no embedded stand-in"


def _source(plugin: Plugin, kind: str) -> Source:
    if kind == "local":
        return Source(kind="local", files=local.files(plugin), says=f"{_title(plugin)}, from the local data folder")
    if kind == "hub":
        spec = plugin.extra["hub"]
        says = f"{_title(plugin)}, from the hub: {spec['repo']} at {spec['revision'][:12]}"
        return Source(kind="hub", revision=spec["revision"], says=says)
    stand_in = plugin.extra["embedded"]
    what = "images" if "image" in plugin.extra else "text"
    says = f"generated {what} in place of {_title(plugin)} (embedded `{stand_in}`, synthetic)"
    return Source(kind="embedded", revision=f"v{_generator(plugin).VERSION}", synthetic=True, says=says)


def resolve(name: str, wanted: str = "auto") -> Source:
    """Where a dataset comes from: its local folder, the hub at a pinned revision, or the embedded stand-in.

    Args:
        wanted: a kind by name, which must work, or `auto`, which takes the first of them that is there.

    Raises:
        DpbenchError: unknown dataset or kind; the kind asked for is not there; a local dataset is incomplete or damaged.
    """
    plugin = plugins.get("dataset", name)
    if wanted not in ("auto", *KINDS):
        raise unknown("source", wanted, ("auto", *KINDS), f"dataset {name}")
    reasons = {}
    for kind in KINDS if wanted == "auto" else (wanted,):
        reasons[kind] = _why_not(plugin, kind)
        if not reasons[kind]:
            return _source(plugin, kind)
    spelled = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items())
    raise DpbenchError(f"dataset {name}: not found ({spelled})", "set DPBENCH_DATA to a folder that holds it, or ask for `auto`")


def where(name: str) -> list[str]:
    """One line a kind, for `dpbench doctor`: whether the dataset is found there, and if not why."""
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
    """The file of a split, fetched where it must be.

    Raises:
        DpbenchError: it is gone, damaged or changed since the runs were named.
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


def _splits(plugin: Plugin, source: Source) -> tuple[str, ...]:
    if source.kind not in KINDS:
        raise unknown("source", source.kind, KINDS, f"dataset {plugin.name}")
    if source.kind == "embedded":
        return tuple(_generator(plugin).SPLITS)
    return tuple(plugin.extra["files"] if source.kind == "local" else plugin.extra["hub"]["files"])


def _generated(plugin: Plugin, split: str, source: Source) -> dict[str, list[Any]]:
    module = _generator(plugin)
    if source.revision != f"v{module.VERSION}":
        what = f"dataset {plugin.name}: its runs were named with generator {source.revision}, this is v{module.VERSION}"
        raise DpbenchError(what, "name the runs again (start the command once more)")
    columns = module.generate(split)
    return {canonical: columns[canonical] for canonical in plugin.extra["columns"]}


def load(name: str, split: str, source: Source, limit: int | None = None) -> Examples:
    """The first `limit` examples of a split, from the source that the run was named with.

    Returns:
        Columns under canonical names: classification `text`, for pairs `text_pair`, `label`; language modelling `text`; images
        `image`, `label`; table to text: see `described`.

    Raises:
        DpbenchError: unknown split; the file is gone, damaged or changed since; a column or value is missing; a label is out
            of range.
    """
    plugin = plugins.get("dataset", name)
    if split not in _splits(plugin, source):
        raise unknown("split", split, _splits(plugin, source), f"dataset {name} ({source.kind})")
    if source.kind == "embedded":
        columns = {key: values[:limit] for key, values in _generated(plugin, split, source).items()}
    else:
        columns = parquet.read(path(name, split, source), plugin.extra["columns"], limit)
    where = f"dataset {name}, split {split!r} ({source.kind})"
    if "label" in columns and "classes" in plugin.extra:
        _check_labels(where, columns["label"], plugin.extra["classes"])
    if marks := attributes(name):
        for key in marks:
            _check_labels(f"{where}, {key}", columns[key], ["no", "yes"])
        columns["labels"] = np.stack([np.asarray(columns.pop(key), dtype=np.uint8) for key in marks], axis=1)
    if "image" in columns:
        columns["image"] = images.decode(columns["image"], plugin.extra["image"], where)
    return Examples(columns)


def attributes(name: str) -> list[str]:
    """Canonical columns of a dataset's yes-or-no attributes, `label_...`; empty where an example has one class."""
    return [key for key in plugins.get("dataset", name).extra["columns"] if key.startswith("label_")]


def _check_labels(what: str, labels: list[int], classes: list[str]) -> None:
    for row, label in enumerate(labels):
        if label == -1:
            raise DpbenchError(f"{what}: has no labels (row {row} is -1)", "use a labelled split")
        if not 0 <= label < len(classes):
            way_out = f"labels must be 0 to {len(classes) - 1}: {', '.join(classes)}"
            raise DpbenchError(f"{what}: label {label} in row {row} is out of range", way_out)


def check(name: str, source: Source) -> dict[str, int]:
    """Check schemas by metadata alone: no rows are read, nothing is downloaded, nothing is generated.

    Returns:
        Split -> rows of the files at hand (splits of the hub that are not in its cache yet are left out).

    Raises:
        DpbenchError: a file is gone, changed or damaged, or a column is missing or of the wrong type.
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
        rows[split] = parquet.check(path(name, split, source), plugin.extra["columns"])
    return rows

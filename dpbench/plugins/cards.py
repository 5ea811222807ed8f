"""Cards: datasets and models that one YAML file declares, with the keys that a Python plug-in has in its literal `PLUGIN`.

A card is complete or refused: an unknown, missing or wrong key is one error that names the file and the key. The modules
`dpbench.data.registry` and `dpbench.models.sources` say what the keys mean.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dpbench.errors import DpbenchError, nearest
from dpbench.validation import Strict, parse

TEXT_FILES = (".csv", ".tsv", ".jsonl")
"""Suffixes of files of text; a split may also be a Parquet file."""
SUFFIXES = (".parquet", *TEXT_FILES)
_COLUMNS = {
    "classification": ("text", "label"),
    "image_classification": ("image",),
    "language_modelling": ("text",),
    "question_answering": ("answers",),
    "summary": ("text_input", "text"),
    "table_to_text": (),
}
"""The canonical columns that each task needs."""
_QUOTE = "correct the keys named above; write a text such as 'yes', 'no' or '1' in quotes"


class _Hub(Strict):
    repo: str = Field(min_length=1)
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$")
    why: str = ""
    sha256: dict[str, str] = Field(default_factory=dict)


class _DatasetHub(_Hub):
    files: dict[str, str] = Field(min_length=1)


class _Image(Strict):
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    fit: bool = False


class _Prompt(Strict):
    template: str = Field(min_length=1)
    words: dict[str, str]


class _Card(Strict):
    kind: str
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1)
    summary: str = Field(min_length=1)
    licence: str = Field(min_length=1)


class DatasetCard(_Card):
    """The keys of a dataset's card, which `dpbench.data.registry` describes."""

    task: Literal[
        "classification", "image_classification", "language_modelling", "question_answering", "summary", "table_to_text"
    ]
    folder: str = Field(min_length=1)
    files: dict[str, str] = Field(min_length=1)
    columns: dict[str, str] = Field(min_length=1)
    citation: str = Field(min_length=1)
    classes: list[str] | None = Field(None, min_length=2)
    image: _Image | None = None
    may_lack: list[str] = Field(default_factory=list)
    rows: dict[str, int] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)
    hub: _DatasetHub | None = None
    embedded: str | None = None
    label_words: dict[str, str] | None = None
    label_phrases: dict[str, list[str]] | None = None
    prompt: _Prompt | None = None
    completion_prompt: str | None = None
    answers_key: str = ""
    slots: dict[str, list[str] | None] | None = None
    words: str = ""


class _Size(Strict):
    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    context: int = Field(ge=1)
    hidden: int | None = Field(None, ge=1)


class _Package(Strict):
    distribution: str
    module: str
    folder: str


class ModelCard(_Card):
    """The keys of a model's card, which `dpbench.models.sources` describes."""

    family: Literal["bert", "roberta", "gpt2", "llama", "opt"]
    pretrained: bool
    synthetic: bool | None = None
    architecture: dict[str, bool | int | float | str] | None = Field(None, min_length=1)
    sizes: dict[str, _Size] | None = Field(None, min_length=1)
    folder: str | None = None
    hub: _Hub | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    package: _Package | None = None
    renamed: dict[str, str] = Field(default_factory=dict)
    absent: list[str] = Field(default_factory=list)
    citation: str = ""


def check(values: Mapping[str, Any], path: Path) -> None:
    """Check the content of a card.

    Raises:
        DpbenchError: the kind has no cards; a key is unknown, missing or wrong, or two keys contradict each other.
    """
    where = str(path)
    if values["kind"] == "dataset":
        _check_dataset(parse(DatasetCard, values, where, _QUOTE, strict=True), where)
    elif values["kind"] == "model":
        hint = f"{_QUOTE}; a model with code, such as one of family image, is a Python plug-in"
        _check_model(parse(ModelCard, values, where, hint, strict=True), where)
    else:
        raise DpbenchError(f"{where}: a plug-in of kind {values['kind']} is no card", "write it as a Python file with a PLUGIN")


def _check_hub(hub: _Hub | None, where: str) -> None:
    if hub is not None and hub.revision is None and not hub.why:
        raise DpbenchError(f"{where}: hub.revision is null, and hub lacks why", "pin a revision, or say in `why` why none is")


def _check_dataset(card: DatasetCard, where: str) -> None:
    needed = list(_COLUMNS[card.task])
    attributes = [column for column in card.columns if column.startswith("label_")]
    if card.task == "image_classification" and not attributes:
        needed.append("label")
    if card.task == "table_to_text":
        needed += [] if "triples" in card.columns else ["text_input"]
        needed += [] if "annotations" in card.columns else ["text"]
    if missing := [column for column in needed if column not in card.columns]:
        what = f"{where}: columns lacks {', '.join(missing)}: task {card.task} needs {', '.join(needed)}"
        raise DpbenchError(what, f"columns: {{{', '.join(f'{column}: NAME IN THE FILE' for column in needed)}}}")
    required = {"classes": "label" in card.columns, "image": "image" in card.columns}
    required["completion_prompt"] = card.task == "question_answering" or card.label_words is not None
    for key, is_required in required.items():
        if is_required and getattr(card, key) is None:
            raise DpbenchError(f"{where}: lacks {key}, which a dataset of task {card.task} needs here", f"add the key {key}")
    if "train" not in card.files:
        raise DpbenchError(f"{where}: files lacks train", f"it has {', '.join(card.files)}; call one of them train")
    for split, name in card.files.items():
        if not name.endswith(SUFFIXES):
            what = f"{where}: files.{split}: {name!r} is no {', '.join(SUFFIXES)} file"
            raise DpbenchError(what, "store the rows as CSV (.csv), tab-separated text, JSON lines or Parquet")
        if card.image is not None and name.endswith(TEXT_FILES):
            raise DpbenchError(f"{where}: files.{split}: {name} cannot hold images", "store images in a Parquet file")
    _check_hub(card.hub, where)
    for key, names in {"hub.files": card.hub.files if card.hub else card.files, "may_lack": card.may_lack}.items():
        if unknown := sorted(set(names) - set(card.files)):
            raise DpbenchError(f"{where}: {key}: unknown split {unknown[0]!r}", nearest(unknown[0], card.files))
    if card.hub is not None and (missing := sorted(set(card.files) - set(card.hub.files))):
        raise DpbenchError(f"{where}: hub.files lacks {', '.join(missing)}", "name the same splits as `files`")
    words = card.prompt.words if card.prompt else None
    for key, by_class in {"label_words": card.label_words, "label_phrases": card.label_phrases, "prompt.words": words}.items():
        if by_class is not None and set(by_class) != set(card.classes or ()):
            what = f"{where}: {key} names {', '.join(by_class) or 'no class'}"
            raise DpbenchError(what, f"its classes are {', '.join(card.classes or ()) or 'none'}")
    _check_template(card.completion_prompt or "", card.columns, f"{where}: completion_prompt")
    _check_template(card.prompt.template if card.prompt else "", [*card.columns, "mask"], f"{where}: prompt.template")


def _check_model(card: ModelCard, where: str) -> None:
    if (card.architecture is None) == (card.sizes is None):
        raise DpbenchError(f"{where}: needs either architecture or sizes", "architecture is one model, sizes is a family")
    for key, value in (card.architecture or {}).items():
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+[eE][+-]?[0-9]+", value):
            raise DpbenchError(f"{where}: architecture.{key}: {value!r} is a text in YAML", "write a point: 1.0e-5, not 1e-5")
    for name, size in (card.sizes or {}).items():
        if card.family != "gpt2" and size.hidden is None:
            raise DpbenchError(f"{where}: sizes.{name} lacks hidden", "give the width inside a block's MLP")
    if card.package is not None and card.sha256 is None:
        raise DpbenchError(f"{where}: package without sha256", "give the sha256 of the weights in the package")
    _check_hub(card.hub, where)


# Templates of prompts: `{column}` is the text of a row as it is, and a format says what is changed.
_FORMATS: dict[str, Callable[[str], str]] = {
    "": str,
    "strip": str.strip,
    # a capital at the beginning, one question mark at the end
    "question": lambda text: f"{(bare := text.strip())[:1].upper()}{bare[1:].removesuffix('?').rstrip()}?",
}


def _check_template(template: str, columns: Any, where: str) -> None:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DpbenchError(f"{where}: {error}", "write {{ and }} for braces that are part of the text") from error
    for _, column, form, conversion in parts:
        if column is None:
            continue
        if column not in columns:
            raise DpbenchError(f"{where}: no column {column!r}", nearest(column, columns))
        if form not in _FORMATS or conversion:
            what = f"{where}: {column} has the unknown format {form or conversion!r}"
            raise DpbenchError(what, f"known: {', '.join(filter(None, _FORMATS))}")


def rendered(template: str, row: Mapping[str, str]) -> str:
    """Return a template with the texts of a row.

    `{column}` is the text as it is, `{column:strip}` without white space around it, `{column:question}` as a question: stripped,
    with a capital at the beginning and one question mark at the end.
    """
    parts = []
    for literal, column, form, _ in string.Formatter().parse(template):
        parts.append(literal)
        if column is not None:
            parts.append(_FORMATS[form or ""](row[column]))
    return "".join(parts)

"""DART: sentences from triples of tables, WebNLG and E2E."""

from __future__ import annotations

from typing import Any

from dpbench.data.described import Described, plain

PLUGIN = {
    "kind": "dataset",
    "name": "dart",
    "version": 1,
    "summary": "DART v1.1.1: sentences from triples",
    "task": "table_to_text",
    "folder": "dart",
    "files": {"train": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"},
    "may_lack": ["train"],
    "columns": {"triples": "tripleset", "annotations": "annotations"},
    "hub": None,
    "embedded": "restaurants",
    "licence": "MIT (repository); parts derive from WebNLG (CC BY-NC-SA), E2E and WikiTableQuestions (CC BY-SA)",
    "citation": "Nan et al., NAACL 2021",
}


def described(columns: dict[str, list[Any]]) -> list[Described]:
    """Fields (subject, relation, object); the annotations of a row are lists side by side, `source` and `text`."""
    return [
        Described(
            tuple(tuple(plain(part) for part in _parts(triple)) for triple in triples),
            tuple(annotations["text"]),
        )
        for triples, annotations in zip(columns["triples"], columns["annotations"], strict=True)
    ]


def _parts(triple: Any) -> list[str]:
    """A triple is a list; generated ones are written as WebNLG's."""
    return triple.split(" | ", 2) if isinstance(triple, str) else list(triple)

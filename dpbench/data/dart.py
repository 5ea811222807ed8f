"""DART: sentences from triples of tables, WebNLG and E2E."""

from __future__ import annotations

from typing import Any

from dpbench.data import triples
from dpbench.data.described import Described

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
    """Return the fields (subject, relation, object) and texts of each row.

    The annotations of a row are two lists of the same length, `source` and `text`, or, as in the JSON of DART, a list of structs
    of both.
    """
    return [
        Described(triples.triples("tripleset", entries), triples.texts("annotations", annotations, "text"))
        for entries, annotations in zip(columns["triples"], columns["annotations"], strict=True)
    ]

"""WebNLG 2017: sentences from one to seven triples of DBpedia."""

from __future__ import annotations

from typing import Any

from dpbench.data.described import Described, plain

PLUGIN = {
    "kind": "dataset",
    "name": "web_nlg",
    "version": 1,
    "summary": "WebNLG 2017: sentences from triples of DBpedia",
    "task": "table_to_text",
    "folder": "web_nlg",
    "files": {"train": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"},
    "columns": {"triples": "input", "text": "target", "references": "references"},
    "hub": None,
    "embedded": "restaurants",
    "licence": "CC BY-NC-SA 4.0 (non-commercial)",
    "citation": "Gardent et al., INLG 2017",
}


def described(columns: dict[str, list[Any]]) -> list[Described]:
    """Fields (subject, relation, object) of `Aarhus_Airport | cityServed | "Aarhus, Denmark"`.

    A row without a list of references (in train, one text a row) has its target alone.
    """
    return [
        Described(
            tuple(tuple(plain(part) for part in triple.split(" | ", 2)) for triple in triples),
            tuple(texts or [text]),
        )
        for triples, text, texts in zip(columns["triples"], columns["text"], columns["references"], strict=True)
    ]

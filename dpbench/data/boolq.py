"""BoolQ: questions that people asked, answered by yes or no from a passage."""

from __future__ import annotations

from typing import Any

PLUGIN = {
    "kind": "dataset",
    "name": "boolq",
    "version": 1,
    "summary": "BoolQ: yes-or-no questions about a passage",
    "task": "classification",
    "classes": ["no", "yes"],
    "folder": "boolq",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text": "passage", "text_pair": "question", "label": "answer"},
    "rows": {"train": 9_427, "validation": 3_270},
    "hub": {
        "repo": "google/boolq",
        "revision": None,
        "why": "none could be looked at when this was written; give it here, or fetch the two files into the local folder",
        "files": {
            "train": "data/train-00000-of-00001.parquet",
            "validation": "data/validation-00000-of-00001.parquet",
        },
    },
    "embedded": "doubts",
    "label_words": {"no": " No", "yes": " Yes"},
    "licence": "CC BY-SA 3.0",
    "citation": "Clark et al., NAACL 2019 (arXiv 1905.10044)",
}


def prompts(columns: dict[str, list[Any]]) -> list[str]:
    """Return the passage, then the question with a capital and a question mark, as in Malladi et al. (NeurIPS 2023)."""
    return [
        f"{passage} {_asked(question.strip())}" for passage, question in zip(columns["text"], columns["text_pair"], strict=True)
    ]


def _asked(question: str) -> str:
    return f"{question[:1].upper()}{question[1:].removesuffix('?').rstrip()}?"

"""SQuAD 1.1: questions whose answer is a part of a passage."""

from __future__ import annotations

from typing import Any

from dpbench.data.triples import texts

PLUGIN = {
    "kind": "dataset",
    "name": "squad",
    "version": 1,
    "summary": "SQuAD 1.1: questions answered by words of a passage",
    "task": "question_answering",
    "folder": "squad",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text_title": "title", "text_context": "context", "text_question": "question", "answers": "answers"},
    "rows": {"train": 87_599, "validation": 10_570},
    "hub": {
        "repo": "rajpurkar/squad",
        "revision": None,
        "why": "none could be looked at when this was written; give it here, or fetch the two files into the local folder",
        "files": {
            "train": "plain_text/train-00000-of-00001.parquet",
            "validation": "plain_text/validation-00000-of-00001.parquet",
        },
    },
    "embedded": "readings",
    "licence": "CC BY-SA 4.0",
    "citation": "Rajpurkar et al., EMNLP 2016 (arXiv 1606.05250)",
}


def prompts(columns: dict[str, list[Any]]) -> list[str]:
    """Return title, passage and question in the form of Malladi et al. (NeurIPS 2023)."""
    parts = zip(columns["text_title"], columns["text_context"], columns["text_question"], strict=True)
    return [f"Title: {title}\nContext: {context}\nQuestion: {question.strip()}\nAnswer:" for title, context, question in parts]


def answers(columns: dict[str, list[Any]]) -> list[tuple[str, ...]]:
    """Return the answers that people gave, in the order of the file."""
    return [texts("answers", value, "text") for value in columns["answers"]]

"""DROP: questions that need counting, adding or comparing what a passage says."""

from __future__ import annotations

from typing import Any

from dpbench.data.triples import texts

PLUGIN = {
    "kind": "dataset",
    "name": "drop",
    "version": 1,
    "summary": "DROP: questions that need arithmetic over a passage",
    "task": "question_answering",
    "folder": "drop",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text_passage": "passage", "text_question": "question", "answers": "answers_spans"},
    "rows": {"train": 77_400, "validation": 9_535},
    "hub": {
        "repo": "ucinlp/drop",
        "revision": None,
        "why": "none could be looked at when this was written; give it here, or fetch the two files into the local folder",
        "files": {
            "train": "data/train-00000-of-00001.parquet",
            "validation": "data/validation-00000-of-00001.parquet",
        },
    },
    "embedded": "tallies",
    "licence": "CC BY-SA 4.0",
    "citation": "Dua et al., NAACL 2019 (arXiv 1903.00161)",
}


def prompts(columns: dict[str, list[Any]]) -> list[str]:
    """Return passage and question in the form of Malladi et al. (NeurIPS 2023)."""
    parts = zip(columns["text_passage"], columns["text_question"], strict=True)
    return [f"Passage: {passage}\nQuestion: {question.strip()}\nAnswer:" for passage, question in parts]


def answers(columns: dict[str, list[Any]]) -> list[tuple[str, ...]]:
    """Return spans and numbers; each span of an answer counts as an answer, as in Malladi et al. (NeurIPS 2023)."""
    return [texts("answers_spans", value, "spans") for value in columns["answers"]]

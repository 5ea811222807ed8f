"""SAMSum: short chats, and what they are about in a sentence or two."""

from __future__ import annotations

from typing import Any

from dpbench.data.described import Described

PLUGIN = {
    "kind": "dataset",
    "name": "samsum",
    "version": 1,
    "summary": "SAMSum: summaries of chats",
    "task": "summary",
    "folder": "samsum",
    "files": {"train": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"},
    "columns": {"text_input": "dialogue", "text": "summary"},
    "rows": {"train": 14_732, "validation": 818, "test": 819},
    "hub": {
        "repo": "Samsung/samsum",
        "revision": "a3e27aad035a3d2fb53a0ed5f58fb17e9c4d28e7",
        "files": {
            "train": "samsum/train-00000-of-00001.parquet",
            "validation": "samsum/validation-00000-of-00001.parquet",
            "test": "samsum/test-00000-of-00001.parquet",
        },
    },
    "embedded": "chats",
    "licence": "CC BY-NC-ND 4.0",
    "citation": "Gliwa et al., EMNLP workshop on new frontiers in summarization, 2019 (arXiv 1911.12237)",
}


def described(columns: dict[str, list[Any]]) -> list[Described]:
    """Return one field, the dialogue, with one line `name: utterance` for each utterance."""
    return [
        Described((("dialogue", dialogue.replace("\r\n", "\n")),), (summary,))
        for dialogue, summary in zip(columns["text_input"], columns["text"], strict=True)
    ]

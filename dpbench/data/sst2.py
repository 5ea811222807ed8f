"""SST-2: sentiment of sentences and phrases from film reviews."""

from __future__ import annotations

from typing import Any

PLUGIN = {
    "kind": "dataset",
    "name": "sst2",
    "version": 1,
    "summary": "SST-2 (GLUE): positive or negative film review phrases",
    "task": "classification",
    "classes": ["negative", "positive"],
    "label_words": {"negative": " terrible", "positive": " great"},
    "folder": "glue_sst2",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text": "sentence", "label": "label"},
    "rows": {"train": 67_349, "validation": 872},
    "hub": {
        "repo": "nyu-mll/glue",
        "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "files": {
            "train": "sst2/train-00000-of-00001.parquet",
            "validation": "sst2/validation-00000-of-00001.parquet",
        },
    },
    "embedded": "sentiment",
    # Public words for a label-word head: none of them comes from the dataset.
    "label_phrases": {
        "negative": ["a terrible movie", "it was bad", "awful and boring", "a complete waste of time", "i hated it"],
        "positive": ["a great movie", "it was good", "wonderful and moving", "an absolute delight", "i loved it"],
    },
    # For masked language models (Gao et al., ACL 2021; Malladi et al., NeurIPS 2023).
    "prompt": {
        "template": "{text} It was {mask}.",
        "words": {"negative": "terrible", "positive": "great"},
    },
    "licence": "none stated upstream (Stanford Sentiment Treebank, by way of GLUE)",
    "citation": "Socher et al., EMNLP 2013; Wang et al., ICLR 2019 (GLUE)",
}


def prompts(columns: dict[str, list[Any]]) -> list[str]:
    """Return the sentence and ` It was`, as in Malladi et al. (NeurIPS 2023)."""
    return [f"{text.strip()} It was" for text in columns["text"]]

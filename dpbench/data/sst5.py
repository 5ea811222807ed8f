"""SST-5: sentiment of film review sentences in five degrees."""

PLUGIN = {
    "kind": "dataset",
    "name": "sst5",
    "version": 1,
    "summary": "SST-5: film review sentences, from very negative to very positive",
    "task": "classification",
    "classes": ["very_negative", "negative", "neutral", "positive", "very_positive"],
    "folder": "sst5",
    "files": {"train": "train.parquet", "validation": "test.parquet"},
    "columns": {"text": "text", "label": "label"},
    "rows": {"train": 8_544, "validation": 2_210},
    "hub": None,  # no revision has been pinned: see data_folder
    "embedded": "degrees",
    # Public words for a label-word head: none of them comes from the dataset.
    "label_phrases": {
        "very_negative": ["an utterly terrible movie", "it was the worst", "truly awful", "i hated every minute of it"],
        "negative": ["a bad movie", "it was rather dull", "disappointing", "i did not like it"],
        "neutral": ["an average movie", "it was okay", "neither good nor bad", "it has its moments"],
        "positive": ["a good movie", "it was nice", "enjoyable", "i liked it"],
        "very_positive": ["an absolutely great movie", "it was the best", "truly wonderful", "i loved every minute of it"],
    },
    # For masked language models (Gao et al., ACL 2021; Malladi et al., NeurIPS 2023).
    "prompt": {
        "template": "{text} It was {mask}.",
        "words": {
            "very_negative": "terrible",
            "negative": "bad",
            "neutral": "okay",
            "positive": "good",
            "very_positive": "great",
        },
    },
    "licence": "none stated upstream (Stanford Sentiment Treebank)",
    "citation": "Socher et al., EMNLP 2013",
}

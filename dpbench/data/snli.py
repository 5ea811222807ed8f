"""SNLI: whether a caption entails a hypothesis."""

PLUGIN = {
    "kind": "dataset",
    "name": "snli",
    "version": 1,
    "summary": "SNLI: does the premise entail the hypothesis",
    "task": "classification",
    "classes": ["entailment", "neutral", "contradiction"],
    "folder": "snli",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    "rows": {"train": 549_367, "validation": 9_842},
    "hub": None,  # no revision has been pinned: see data_folder
    "embedded": "entailment",
    # For masked language models (Gao et al., ACL 2021; Malladi et al., NeurIPS 2023).
    "prompt": {
        "template": "{text}? {mask}, {text_pair}",
        "words": {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"},
    },
    "licence": "CC BY-SA 4.0",
    "citation": "Bowman et al., EMNLP 2015",
}

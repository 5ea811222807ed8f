"""QQP: whether two questions of Quora ask the same."""

PLUGIN = {
    "kind": "dataset",
    "name": "qqp",
    "version": 1,
    "summary": "QQP (GLUE): do two questions ask the same",
    "task": "classification",
    "classes": ["not_duplicate", "duplicate"],
    "folder": "glue_qqp",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text": "question1", "text_pair": "question2", "label": "label"},
    "rows": {"train": 363_846, "validation": 40_430},
    "hub": {
        "repo": "nyu-mll/glue",
        "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "files": {
            "train": "qqp/train-00000-of-00001.parquet",
            "validation": "qqp/validation-00000-of-00001.parquet",
        },
    },
    "embedded": "paraphrases",
    # Printed beside every number of that source: the local copy has no official validation row.
    "notes": {"local": "both splits are samples of the official train split, so this is not the GLUE validation number"},
    "licence": "Quora's terms of service, non-commercial use (by way of GLUE); the local validation split is a sample of train",
    "citation": "Iyer et al., 2017 (Quora); Wang et al., ICLR 2019 (GLUE)",
}

"""MNLI: whether a premise entails a hypothesis, evaluated on genres seen in training (matched).

The mismatched validation split is not declared: the local folder does not hold it, and half a dataset is refused.
"""

PLUGIN = {
    "kind": "dataset",
    "name": "mnli",
    "version": 1,
    "summary": "MNLI (GLUE), matched validation: does the premise entail the hypothesis",
    "task": "classification",
    "classes": ["entailment", "neutral", "contradiction"],
    "folder": "glue_mnli",
    "files": {"train": "train.parquet", "validation": "validation_matched.parquet"},
    "columns": {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    "rows": {"train": 392_702, "validation": 9_815},
    "hub": {
        "repo": "nyu-mll/glue",
        "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "files": {
            "train": "mnli/train-00000-of-00001.parquet",
            "validation": "mnli/validation_matched-00000-of-00001.parquet",
        },
    },
    "embedded": "entailment",
    # For masked language models (Gao et al., ACL 2021; Malladi et al., NeurIPS 2023).
    "prompt": {
        "template": "{text}? {mask}, {text_pair}",
        "words": {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"},
    },
    "licence": "OANC, CC BY 3.0 or CC BY-SA 3.0 by genre (MultiNLI, by way of GLUE)",
    "citation": "Williams et al., NAACL 2018; Wang et al., ICLR 2019 (GLUE)",
}

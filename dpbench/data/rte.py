"""RTE: whether a text entails a sentence."""

PLUGIN = {
    "kind": "dataset",
    "name": "rte",
    "version": 1,
    "summary": "RTE (GLUE): does the first text entail the second",
    "task": "classification",
    "classes": ["entailment", "not_entailment"],
    "folder": "glue_rte",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text": "sentence1", "text_pair": "sentence2", "label": "label"},
    "rows": {"train": 2_490, "validation": 277},
    "hub": {
        "repo": "nyu-mll/glue",
        "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "files": {
            "train": "rte/train-00000-of-00001.parquet",
            "validation": "rte/validation-00000-of-00001.parquet",
        },
    },
    "embedded": "claims",
    # For masked language models (Gao et al., ACL 2021; Malladi et al., NeurIPS 2023).
    "prompt": {
        "template": "{text}? {mask}, {text_pair}",
        "words": {"entailment": "Yes", "not_entailment": "No"},
    },
    "licence": "none stated upstream (PASCAL RTE, by way of GLUE)",
    "citation": "Dagan et al., 2006, and the three challenges after it; Wang et al., ICLR 2019 (GLUE)",
}

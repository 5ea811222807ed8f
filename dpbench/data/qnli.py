"""QNLI: whether a sentence of Wikipedia answers a question."""

PLUGIN = {
    "kind": "dataset",
    "name": "qnli",
    "version": 1,
    "summary": "QNLI (GLUE): does the sentence hold the answer to the question",
    "task": "classification",
    "classes": ["entailment", "not_entailment"],
    "folder": "glue_qnli",
    "files": {"train": "train.parquet", "validation": "validation.parquet"},
    "columns": {"text": "question", "text_pair": "sentence", "label": "label"},
    "rows": {"train": 104_743, "validation": 5_463},
    "hub": {
        "repo": "nyu-mll/glue",
        "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "files": {
            "train": "qnli/train-00000-of-00001.parquet",
            "validation": "qnli/validation-00000-of-00001.parquet",
        },
    },
    "embedded": "answers",
    "licence": "CC BY-SA 4.0 (SQuAD, by way of GLUE)",
    "citation": "Rajpurkar et al., EMNLP 2016; Wang et al., ICLR 2019 (GLUE)",
}

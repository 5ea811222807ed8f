"""WikiText-2: Wikipedia articles, a line of text a row, rare words already replaced by <unk>."""

PLUGIN = {
    "kind": "dataset",
    "name": "wikitext2",
    "version": 1,
    "summary": "WikiText-2 (word level): good and featured Wikipedia articles",
    "task": "language_modelling",
    "folder": "wikitext2",
    "files": {"train": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"},
    "columns": {"text": "text"},
    "hub": {
        "repo": "Salesforce/wikitext",
        "revision": "b08601e04326c79dfdd32d625aee71d232d685c3",
        "files": {
            "train": "wikitext-2-v1/train-00000-of-00001.parquet",
            "validation": "wikitext-2-v1/validation-00000-of-00001.parquet",
            "test": "wikitext-2-v1/test-00000-of-00001.parquet",
        },
    },
    "embedded": "articles",
    "licence": "CC BY-SA 3.0 / GFDL (Wikipedia text)",
    "citation": "Merity et al., ICLR 2017",
}

"""MNIST: handwritten digits."""

PLUGIN = {
    "kind": "dataset",
    "name": "mnist",
    "version": 1,
    "summary": "MNIST: handwritten digits, 28 x 28, grey",
    "task": "image_classification",
    "classes": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "image": {"channels": 1, "height": 28, "width": 28},
    "folder": "mnist",
    "files": {"train": "train.parquet", "test": "test.parquet"},
    "columns": {"image": "image", "label": "label"},
    "rows": {"train": 60_000, "test": 10_000},
    "hub": {
        "repo": "ylecun/mnist",
        "revision": "77f3279092a1c1579b2250db8eafed0ad422088c",
        "files": {"train": "mnist/train-00000-of-00001.parquet", "test": "mnist/test-00000-of-00001.parquet"},
    },
    "embedded": "grey_shapes",
    "licence": "CC BY-SA 3.0 (as commonly stated)",
    "citation": "LeCun et al., 1998",
}

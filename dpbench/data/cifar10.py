"""CIFAR-10: small colour photographs."""

PLUGIN = {
    "kind": "dataset",
    "name": "cifar10",
    "version": 1,
    "summary": "CIFAR-10: photographs of ten kinds of things, 32 x 32, colour",
    "task": "image_classification",
    "classes": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "image": {"channels": 3, "height": 32, "width": 32},
    "folder": "cifar10",
    "files": {"train": "train.parquet", "test": "test.parquet"},
    "columns": {"image": "img", "label": "label"},
    "rows": {"train": 50_000, "test": 10_000},
    "hub": {
        "repo": "uoft-cs/cifar10",
        "revision": "0b2714987fa478483af9968de7c934580d0bb9a2",
        "files": {"train": "plain_text/train-00000-of-00001.parquet", "test": "plain_text/test-00000-of-00001.parquet"},
    },
    "embedded": "colour_shapes",
    "licence": "none stated upstream",
    "citation": "Krizhevsky, 2009",
}

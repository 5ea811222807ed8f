"""Fashion-MNIST: photographs of clothes.

Local folder: fashion_mnist/{train,test}.parquet with the columns `image` (PNG, or 784 raw bytes) and `label`.
"""

PLUGIN = {
    "kind": "dataset",
    "name": "fashion_mnist",
    "version": 1,
    "summary": "Fashion-MNIST: photographs of ten kinds of clothes, 28 x 28, grey",
    "task": "image_classification",
    "classes": ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"],
    "image": {"channels": 1, "height": 28, "width": 28},
    "folder": "fashion_mnist",
    "files": {"train": "train.parquet", "test": "test.parquet"},
    "columns": {"image": "image", "label": "label"},
    "rows": {"train": 60_000, "test": 10_000},
    "hub": {
        "repo": "zalando-datasets/fashion_mnist",
        "revision": None,
        "why": "none could be looked at when this was written; give it here, or fetch the two files into the local folder",
        "files": {
            "train": "fashion_mnist/train-00000-of-00001.parquet",
            "test": "fashion_mnist/test-00000-of-00001.parquet",
        },
    },
    "embedded": "grey_shapes",
    "licence": "MIT",
    "citation": "Xiao et al., 2017, arXiv 1708.07747",
}

"""ImageNette: ten classes of ImageNet that are easy to tell apart.

Local folder: imagenette/{train,validation}.parquet with the columns `image` (JPEG or PNG of any size) and `label`.
"""

PLUGIN = {
    "kind": "dataset",
    "name": "imagenette",
    "version": 1,
    "summary": "ImageNette: photographs of ten classes of ImageNet, cut to 64 x 64, colour",
    "task": "image_classification",
    "classes": [
        "tench",
        "English springer",
        "cassette player",
        "chain saw",
        "church",
        "French horn",
        "garbage truck",
        "gas pump",
        "golf ball",
        "parachute",
    ],
    "image": {"channels": 3, "height": 64, "width": 64, "fit": True},
    "folder": "imagenette",
    "files": {"train": "train.parquet", "test": "validation.parquet"},
    "columns": {"image": "image", "label": "label"},
    "rows": {"train": 9_469, "test": 3_925},
    "hub": {
        "repo": "frgfm/imagenette",
        "revision": "1d512d2f3d789c60800b7f7a95005deb0ff123d7",
        "files": {"train": "160px/train/0000.parquet", "test": "160px/validation/0000.parquet"},
    },
    "embedded": "photo_shapes",
    "licence": "Apache-2.0; the photographs are ImageNet's",
    "citation": "Howard, 2019, github.com/fastai/imagenette",
}

"""CelebA, one attribute: Smiling.

Local folder: celeba/{train,test}.parquet with the columns `image` (JPEG or PNG of any size) and 40 attributes, yes or no, under
the names that flwrlabs/celeba on the hub gives them. Its shards of a split, joined, are such a file.
"""

PLUGIN = {
    "kind": "dataset",
    "name": "celeba_smiling",
    "version": 1,
    "summary": "CelebA: faces, whether smiling, cut to 64 x 64, colour",
    "task": "image_classification",
    "classes": ["not smiling", "smiling"],
    "columns": {"image": "image", "label": "Smiling"},
    "image": {"channels": 3, "height": 64, "width": 64, "fit": True},
    "folder": "celeba",
    "files": {"train": "train.parquet", "test": "test.parquet"},
    "rows": {"train": 162_770, "test": 19_962},
    "hub": None,  # flwrlabs/celeba cuts its train split into 19 files, and a split is one file here
    "embedded": "face_shapes",
    "licence": "CelebA's agreement: research only, not to be passed on",
    "citation": "Liu et al., ICCV 2015",
}

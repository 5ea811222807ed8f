"""Compute a frozen model's features of a dataset's images."""

from dpbench.tasks.image_classification.features import FeatureSettings as Settings
from dpbench.tasks.image_classification.features import check, run, uses

PLUGIN = {"kind": "job", "name": "image_features", "version": 1, "summary": "features of images by a frozen model"}

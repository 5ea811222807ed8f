"""Compute a frozen encoder's features of a classification dataset."""

from dpbench.tasks.text_classification.features import FeatureSettings as Settings
from dpbench.tasks.text_classification.features import check, run, uses

PLUGIN = {"kind": "job", "name": "text_features", "version": 1, "summary": "pooled features of a frozen encoder"}

"""A small dataset's card, which tests of cards and of the files that cards name start from."""

from __future__ import annotations

COLUMNS = "{text: review, label: stars}"
REVIEWS = f"""\
kind: dataset
name: reviews
version: 1
summary: reviews of shops
task: classification
classes: [bad, good]
folder: reviews
files: {{train: train.csv, validation: validation.csv}}
columns: {COLUMNS}
licence: CC0
citation: nobody
"""

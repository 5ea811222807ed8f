"""Samples of generated text in a record (`facts.samples`), and the part of them that may leave this machine."""

from __future__ import annotations

from dpbench.records.schema import Record

SHOWN = ("place", "index", "output", "bleu")
"""place: `best` or `worst`; index: that of the input in its split. A local record also has `input` and `references`."""


def public(record: Record) -> Record:
    """Return the record without text of its dataset: each sample has the model's output and the index of the input only."""
    samples = record.facts.get("samples")
    if not samples or all(set(sample) <= set(SHOWN) for sample in samples):
        return record
    kept = [{key: sample[key] for key in SHOWN if key in sample} for sample in samples]
    return record.model_copy(update={"facts": record.facts | {"samples": kept}})

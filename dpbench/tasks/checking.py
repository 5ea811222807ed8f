"""Check the files at hand of a run's datasets before it starts."""

from __future__ import annotations

from typing import Any

from dpbench.data import registry as datasets
from dpbench.spec.sources import Source


def checked_rows(settings: Any, sources: dict[str, Source]) -> dict[str, int]:
    """Check the files of all datasets against their schemas; return split -> rows of `settings.dataset`, as far as known.

    Raises:
        DpbenchError: a file does not have its schema; names file and column.
    """
    names = [key.removeprefix("dataset:") for key in sources if key.startswith("dataset:")]
    return {name: datasets.check(name, sources[f"dataset:{name}"]) for name in names}[settings.dataset]


def trained_rows(settings: Any, sources: dict[str, Source]) -> int:
    """Return how many rows training can draw, 0 where that is not known, after checking all files as `checked_rows` does."""
    count = checked_rows(settings, sources).get("train", 0)
    if (per_class := getattr(settings, "per_class", None)) is not None:
        count = min(count, per_class * len(datasets.classes(settings.dataset)))
    return min(count, settings.train_limit or count)

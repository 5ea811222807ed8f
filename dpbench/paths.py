"""Where things are: everything is relative to the folder that holds `benchmarks/`."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The working tree: `DPBENCH_ROOT`, else the current folder or a parent that holds `benchmarks/`."""
    if given := os.environ.get("DPBENCH_ROOT"):
        return Path(given)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "benchmarks").is_dir():
            return folder
    return PACKAGE.parent


def benchmarks() -> Path:
    return root() / "benchmarks"


def runs() -> Path:
    return root() / "results" / "runs"


def recorded() -> Path:
    return root() / "results" / "recorded"


def cache() -> Path:
    """Things that are costly to make and safe to delete: `DPBENCH_CACHE`, else `results/cache`."""
    if given := os.environ.get("DPBENCH_CACHE"):
        return Path(given)
    return root() / "results" / "cache"

"""The folders of the working tree: all are relative to the folder that contains `benchmarks/`."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """Return the working tree: `DPBENCH_ROOT`, else the current folder or the nearest parent that contains `benchmarks/`."""
    if folder_name := os.environ.get("DPBENCH_ROOT"):
        return Path(folder_name)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "benchmarks").is_dir():
            return folder
    return PACKAGE.parent


def benchmarks() -> Path:
    return root() / "benchmarks"


def runs() -> Path:
    return root() / "results" / "runs"


def tables() -> Path:
    return root() / "results" / "tables"


def recorded() -> Path:
    return root() / "results" / "recorded"


def cache() -> Path:
    """Return the folder for things that are costly to compute and safe to delete: `DPBENCH_CACHE`, else `results/cache`."""
    if folder_name := os.environ.get("DPBENCH_CACHE"):
        return Path(folder_name)
    return root() / "results" / "cache"

"""Folders of finished runs, for tests of jobs that read a parent's artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpbench.execution import environment
from dpbench.files import sha256_file
from dpbench.records.schema import Record
from dpbench.records.store import write_record
from dpbench.spec.expand import run_id


def as_parent(folder: Path, job: str, files: list[str], **over: Any) -> Path:
    """Turn a folder with files into that of a finished run, which children may read; returns the folder."""
    config = {"job": job, "settings": {}, "seed": 0, "versions": {}, "sources": {}, "parents": {}}
    values = {
        "run": run_id(config),
        "config": config,
        "metrics": [],
        "environment": environment.describe(),
        "artefacts": {name: sha256_file(folder / name) for name in files},
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    write_record(Record.model_validate(values | over), folder)
    return folder

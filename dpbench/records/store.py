"""Reading and writing records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import write_atomic
from dpbench.records.schema import SCHEMA_VERSION, Record
from dpbench.spec.expand import run_id

NAME = "record.json"


@dataclass(frozen=True)
class Stored:
    """A record and where it was found. machine: folder under `results/recorded/`, None for this machine's own runs."""

    record: Record
    path: Path
    machine: str | None = None


def write_record(record: Record, folder: Path) -> Path:
    """Validate and write `folder/record.json`, whole or not at all.

    Raises:
        DpbenchError: the record does not hold its own schema, or the file cannot be written.
    """
    path = folder / NAME
    text = record_text(record)
    _validate(json.loads(text), path)
    write_atomic(path, text)
    return path


def record_text(record: Record) -> str:
    """What `record.json` holds."""
    return json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_record(path: Path) -> Record:
    """Read and validate a record.

    Raises:
        DpbenchError: missing, truncated, another schema version, unknown or wrong fields, or a name that is not the hash of
            its config.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DpbenchError(f"{path}: no such record", "run the job that makes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DpbenchError(
            f"{path}: not a whole JSON file ({error})", "delete it and run again; only that run is repeated"
        ) from error
    return _validate(values, path)


def _validate(values: object, path: Path) -> Record:
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DpbenchError(
            f"{path}: schema version {version!r}, this dpbench reads {SCHEMA_VERSION}",
            "delete it and run again, or use the dpbench that wrote it",
        )
    try:
        record = Record.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise DpbenchError(f"{path}: not a valid record: {faults}", "delete it and run again") from error
    if record.run != run_id(record.config):
        raise DpbenchError(
            f"{path}: says run {record.run}, its config hashes to {run_id(record.config)}",
            "the file was edited or renamed; delete it and run again",
        )
    return record


def local_records(runs: Iterable[str] | None = None) -> Iterator[Stored]:
    """This machine's records, or those of `runs` that exist."""
    folder = paths.runs()
    names = sorted(p.name for p in folder.iterdir()) if runs is None and folder.is_dir() else runs or []
    for name in names:
        path = folder / name / NAME
        if path.exists():
            yield Stored(read_record(path), path)


def recorded_records() -> Iterator[Stored]:
    """The committed records of all machines."""
    for path in sorted(paths.recorded().glob(f"*/*/{NAME}")):
        yield Stored(read_record(path), path, machine=path.parent.parent.name)

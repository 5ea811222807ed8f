"""Read and write records. `record_from` checks every record, whether of this machine, committed or sent."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import read_json, write_atomic
from dpbench.parsing import parse_json
from dpbench.records.schema import SCHEMA_VERSION, Record, digest_of, with_digest
from dpbench.spec.expand import run_id
from dpbench.validation import Strict, parse, short

NAME = "record.json"
_AGAIN = "delete it and run again; only that run is repeated"
_LONGEST = 20_000  # characters of one text
_WARNING = 400  # characters of one warning


@dataclass(frozen=True)
class Stored:
    """A record and its file. machine: the machine of a recorded result, None for runs of this machine."""

    record: Record
    path: Path
    machine: str | None = None


class LeftOut(Strict):
    """A record that was not used. where: the file, relative to the working tree; why: what is wrong with it, in one line."""

    run: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"left out {self.where}: {self.why}"


def write_record(record: Record, folder: Path) -> Path:
    """Validate and write `folder/record.json` atomically.

    Raises:
        DpbenchError: the record is not valid, or the file cannot be written.
    """
    path = folder / NAME
    text = record_text(record)
    record_from(parse_json(text, str(path), _AGAIN), str(path))
    write_atomic(path, text)
    return path


def record_text(record: Record) -> str:
    """Return the text of `record.json`, with its digest computed again.

    Raises:
        DpbenchError: a number in it is not finite, or a value cannot be written as JSON.
    """
    try:
        return json.dumps(with_digest(record.model_dump(mode="json")), indent=1, sort_keys=True, allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise DpbenchError(f"record of run {record.run}: cannot be written as JSON ({error})", "look at its facts") from error


def read_record(path: Path, run: str | None = None) -> Record:
    """Read and validate a record.

    Args:
        run: the run that the record must be of: the name of its folder, wherever folders are named after runs.

    Raises:
        DpbenchError: as `record_from`; or the file is missing, truncated or not JSON.
    """
    try:
        values = read_json(path, hint=_AGAIN)
    except DpbenchError as error:
        if not path.exists():
            raise DpbenchError(f"{path}: no such record", "run the job that writes it") from error
        raise
    return record_from(values, str(path), run)


def record_from(values: Any, where: str, run: str | None = None) -> Record:
    """Check the value of a JSON file and return it as a record.

    Args:
        where: the start of every message; run: as in `read_record`.

    Raises:
        DpbenchError: another schema version, unknown or wrong fields, an impossible value, a digest that does not fit,
            or a name that is not the hash of its config.
    """
    version = values.get("schema_version") if isinstance(values, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise DpbenchError(
            f"{where}: schema version {short(repr(version)) if not isinstance(version, dict | list) else '?'}, this dpbench reads"
            f" {SCHEMA_VERSION}",
            "delete it and run again, or use the dpbench that wrote it",
        )
    if "digest" not in values:
        raise DpbenchError(f"{where}: no digest", _AGAIN)
    _check_texts(values, where)
    try:
        record = parse(Record, values, where, strict=True)
    except DpbenchError as error:  # the hint of `parse` is for files that people edit
        raise DpbenchError(error.what, _AGAIN) from error
    if record.run != run_id(record.config):
        raise DpbenchError(
            f"{where}: says run {record.run}, its config hashes to {run_id(record.config)}",
            "the file was edited or renamed; delete it and run again",
        )
    if run is not None and record.run != run:
        raise DpbenchError(
            f"{where}: is the record of run {record.run}, in the folder of run {run}", "put it into its own folder, or delete it"
        )
    if values["digest"] != digest_of(values):
        raise DpbenchError(
            f"{where}: its content does not fit its digest", "the file was damaged or edited; delete it and run again"
        )
    return record


def _check_texts(values: dict[str, Any], where: str) -> None:
    """Refuse texts, at any depth, that are longer than a person would read."""
    for key, value in values.items():
        pending = [value]
        while pending:
            part = pending.pop()
            if type(part) is dict:
                pending += part.values()
                pending += part
            elif type(part) is list:
                pending += part
            elif type(part) is str and len(part) > _LONGEST:
                raise DpbenchError(f"{where}: {short(key)}: a text of {len(part)} characters, {part[:40]!r}...", _AGAIN)


def local_records(runs: Iterable[str] | None = None, left_out: list[LeftOut] | None = None) -> Iterator[Stored]:
    """Yield this machine's records, or those of `runs` that exist.

    Args:
        left_out: records that cannot be used are appended to it; each is also one warning on stderr.
    """
    folder = paths.runs()
    names = sorted(p.name for p in folder.iterdir()) if runs is None and folder.is_dir() else runs or []
    for name in names:
        path = folder / name / NAME
        if path.is_symlink() or path.exists():
            yield from _read_valid(path, left_out)


def _read_valid(path: Path, left_out: list[LeftOut] | None) -> Iterator[Stored]:
    """Yield the record at `path`; an invalid one gives a warning instead."""
    try:
        record = read_record(path, path.parent.name)
    except DpbenchError as error:
        leave_out(path.parent.name, shown(path), error, left_out)
    else:
        yield Stored(record, path)


def leave_out(run: str, where: str, error: DpbenchError, left_out: list[LeftOut] | None) -> None:
    """Print in one line on stderr that a record is not used, and append it to `left_out`."""
    what = error.what.replace(f"{where}: ", "").replace(f"{paths.root() / where}: ", "").replace(f"{paths.root()}/", "")
    line = f"{' '.join(what.split())} (hint: {' '.join(error.hint.split())})"
    item = LeftOut(run=run, where=where, why=line if len(line) <= _WARNING else f"{line[: _WARNING - 3]}...")
    print(f"warning: {item}", file=sys.stderr, flush=True)
    if left_out is not None:
        left_out.append(item)


def shown(path: Path) -> str:
    """Return a path as it is shown to people: relative to the working tree, so that it names no folder of a machine."""
    return str(path.relative_to(paths.root())) if path.is_relative_to(paths.root()) else str(path)

"""Reading and writing records. Every record.json, of this machine, committed or sent, comes in by `record_from`."""

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
from dpbench.records.schema import SCHEMA_VERSION, Record, digest_of
from dpbench.spec.expand import run_id
from dpbench.validation import Strict, parse, short

NAME = "record.json"
_AGAIN = "delete it and run again; only that run is repeated"
_LONGEST = 20_000  # characters of one text
_SAID = 400  # characters of one warning


@dataclass(frozen=True)
class Stored:
    """A record and the file it was found in. machine: of a recorded result, None for this machine's own runs."""

    record: Record
    path: Path
    machine: str | None = None


class LeftOut(Strict):
    """A record that was not used. where: the file, from the working tree on; why: what is wrong with it, in one line."""

    run: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"left out {self.where}: {self.why}"


def write_record(record: Record, folder: Path) -> Path:
    """Validate and write `folder/record.json`, whole or not at all.

    Raises:
        DpbenchError: the record does not hold its own schema, or the file cannot be written.
    """
    path = folder / NAME
    text = record_text(record)
    record_from(parse_json(text, str(path), _AGAIN), str(path))
    write_atomic(path, text)
    return path


def record_text(record: Record) -> str:
    """What `record.json` holds, its digest computed anew.

    Raises:
        DpbenchError: a number in it is not finite, or it holds what JSON cannot.
    """
    return text_of(record.model_dump(mode="json"))


def text_of(values: dict[str, Any]) -> str:
    """`record_text` for a record's values."""
    try:
        return json.dumps(values | {"digest": digest_of(values)}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    except (ValueError, TypeError) as error:
        raise DpbenchError(
            f"record of run {values.get('run')}: cannot be written as JSON ({error})", "look at its facts"
        ) from error


def read_record(path: Path, run: str | None = None) -> Record:
    """Read and validate a record.

    Args:
        run: the one that it must be of: the name of its folder, wherever folders are named after runs.

    Raises:
        DpbenchError: as `record_from`; or the file is missing, truncated or no JSON.
    """
    try:
        values = read_json(path, hint=_AGAIN)
    except DpbenchError as error:
        if not path.exists():
            raise DpbenchError(f"{path}: no such record", "run the job that makes it") from error
        raise
    return record_from(values, str(path), run)


def record_from(values: Any, where: str, run: str | None = None) -> Record:
    """The record that the value of a JSON file is.

    Args:
        where: opens every message; run: as in `read_record`.

    Raises:
        DpbenchError: another schema version, unknown or wrong fields, a value that cannot be, content that its digest does not
            cover, or a name that is not the hash of its config.
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
    except DpbenchError as error:  # nobody mends a record by hand
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
            f"{where}: its content is not what its digest was made of", "the file was damaged or edited; delete it and run again"
        )
    return record


def _check_texts(values: dict[str, Any], where: str) -> None:
    """No text, wherever it stands, is longer than a person would read."""
    for key, value in values.items():
        left = [value]
        while left:
            part = left.pop()
            if type(part) is dict:
                left += part.values()
                left += part
            elif type(part) is list:
                left += part
            elif type(part) is str and len(part) > _LONGEST:
                raise DpbenchError(f"{where}: {short(key)}: a text of {len(part)} characters, {part[:40]!r}...", _AGAIN)


def local_records(runs: Iterable[str] | None = None, left_out: list[LeftOut] | None = None) -> Iterator[Stored]:
    """This machine's records, or those of `runs` that exist.

    Args:
        left_out: gets what cannot be used, each of which is also one warning on stderr.
    """
    folder = paths.runs()
    names = sorted(p.name for p in folder.iterdir()) if runs is None and folder.is_dir() else runs or []
    for name in names:
        path = folder / name / NAME
        if path.is_symlink() or path.exists():
            yield from _sound(path, left_out)


def _sound(path: Path, left_out: list[LeftOut] | None) -> Iterator[Stored]:
    """The record at `path`, or nothing and a warning."""
    try:
        record = read_record(path, path.parent.name)
    except DpbenchError as error:
        leave_out(path.parent.name, shown(path), error, left_out)
    else:
        yield Stored(record, path)


def leave_out(run: str, where: str, error: DpbenchError, left_out: list[LeftOut] | None) -> None:
    """Say in one line on stderr that a record is not used, and note it in `left_out`."""
    what = error.what.replace(f"{where}: ", "").replace(f"{paths.root() / where}: ", "").replace(f"{paths.root()}/", "")
    line = f"{' '.join(what.split())} (hint: {' '.join(error.hint.split())})"
    item = LeftOut(run=run, where=where, why=line if len(line) <= _SAID else f"{line[: _SAID - 3]}...")
    print(f"warning: {item}", file=sys.stderr, flush=True)
    if left_out is not None:
        left_out.append(item)


def shown(path: Path) -> str:
    """A path as it is said to people: from the working tree on, so that it names no machine's folders."""
    return str(path.relative_to(paths.root())) if path.is_relative_to(paths.root()) else str(path)

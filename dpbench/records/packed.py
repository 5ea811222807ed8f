"""Recorded results: one file of JSON lines per machine and paper, one record per line, sorted by run.

The file is `results/recorded/<machine>/<paper>.jsonl`; a record that cells of several papers ask for is filed under the first of
them. Lines are compact JSON with sorted keys, so that filing a record changes one line, and branches that file different records
can be merged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, read_text, write_atomic
from dpbench.parsing import parse_json
from dpbench.records.schema import Record, with_digest
from dpbench.records.store import LeftOut, Stored, leave_out, record_from, shown

LARGEST = 64 << 20
"""Bytes of one file."""
_RUN = re.compile(r'"run": ?"([0-9a-f]{12})"')
_RESTORE = "restore the line from git, or delete it and file the record again"


def recorded_records(left_out: list[LeftOut] | None = None) -> Iterator[Stored]:
    """Yield the recorded results of all machines.

    Args:
        left_out: the lines that cannot be used are appended to it; each is also one warning on stderr.
    """
    for path in sorted(paths.recorded().glob("*/*.jsonl")):
        yield from read_packed(path, left_out)


def read_packed(path: Path, left_out: list[LeftOut] | None = None) -> Iterator[Stored]:
    """Yield the records of one file; left_out: as in `recorded_records`."""
    try:
        text = read_text(path, LARGEST, _RESTORE)
    except DpbenchError as error:
        leave_out("", shown(path), error, left_out)
        return
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{shown(path)}, line {number}"
        try:
            record = _record(line, where)
        except DpbenchError as error:
            leave_out(_run_of(line), where, error, left_out)
        else:
            yield Stored(record, path, path.parent.name)


def _record(line: str, where: str) -> Record:
    """Return the record of a line.

    Raises:
        DpbenchError: it is cut, not JSON, or not a valid record.
    """
    try:
        return record_from(parse_json(line, where, _RESTORE), where)
    except DpbenchError as error:
        raise DpbenchError(error.what, _RESTORE) from error


def _run_of(line: str) -> str:
    """Return the run that a line names, whether it is damaged or not; nothing if it names none."""
    runs: list[str] = _RUN.findall(line)
    return runs[-1] if runs else ""


def line_of(record: Record) -> str:
    """Return a record's line, with its digest computed again.

    Raises:
        DpbenchError: a number in it is not finite.
    """
    return canonical_json(with_digest(record.model_dump(mode="json")))


def file_of(record: Record, machine: str) -> Path:
    """Return the file for a record of a machine."""
    paper = min(request.paper for request in record.requests) if record.requests else "other"
    return paths.recorded() / machine / f"{paper}.jsonl"


def file_records(records: Iterable[tuple[Record, str]]) -> None:
    """File records, each with its machine, in place of earlier ones of the same runs; other lines do not change.

    Raises:
        DpbenchError: a file cannot be read or written.
    """
    by_file: dict[Path, dict[str, str]] = {}
    for record, machine in records:
        by_file.setdefault(file_of(record, machine), {})[record.run] = line_of(record)
    for path, lines in by_file.items():
        old = read_text(path, LARGEST, _RESTORE).splitlines() if path.exists() else []
        line_of_run = {_run_of(line) or line: line for line in old} | lines  # a damaged line that names no run stays
        write_atomic(path, "".join(f"{line}\n" for _, line in sorted(line_of_run.items())))

"""Records from before records had a digest: it is added, nothing else is touched, and that is proved before writing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, read_json, write_atomic
from dpbench.parsing import parse_json
from dpbench.records.archive import pack_files, unpack
from dpbench.records.store import NAME, LeftOut, leave_out, record_from, shown, text_of


def migrate(places: list[Path], left_out: list[LeftOut] | None = None) -> list[str]:
    """Add the digest to every record that has none; what has one stays as it is, to the byte.

    A record gets its digest only if it holds in every other respect: schema, meaning, its name. The digest says that it has not
    changed from now on, and nothing of before.

    Args:
        places: folders, searched for record.json, and archives of `dpbench record`; none: this machine's and the committed.
        left_out: gets the records that do not hold. They stay as they are, and each is also one warning on stderr.

    Returns:
        A line for each place.

    Raises:
        DpbenchError: a place cannot be read, or a file cannot be written.
    """
    lines = []
    for place in places or [folder for folder in (paths.runs(), paths.recorded()) if folder.is_dir()]:
        one = _in_folder if place.is_dir() else _in_archive
        there = list(one(place, left_out))
        lines.append(f"{shown(place)}: {len(there)} records, {sum(there)} of them given a digest")
    return lines


def _in_folder(folder: Path, left_out: list[LeftOut] | None) -> Iterator[bool]:
    """For each record that holds, whether it got its digest now."""
    for path in sorted(folder.rglob(NAME)):
        try:
            text = _with_digest(read_json(path), str(path), path.parent.name)
        except DpbenchError as error:
            leave_out(path.parent.name, shown(path), error, left_out)
            continue
        if text is not None:
            write_atomic(path, text)
            record_from(read_json(path), str(path), path.parent.name)
        yield text is not None


def _in_archive(archive: Path, left_out: list[LeftOut] | None) -> Iterator[bool]:
    with tempfile.TemporaryDirectory() as scratch:
        packed, changed = [], False
        for run, names in unpack(archive, Path(scratch)).items():
            for name in names:
                content = (Path(scratch) / run / name).read_bytes()
                if name == NAME:
                    where = f"{archive}: {run}/{NAME}"
                    try:
                        text = _with_digest(read_json(Path(scratch) / run / NAME), where, run)
                    except DpbenchError as error:
                        leave_out(run, where, error, left_out)
                    else:
                        content = content if text is None else text.encode()
                        changed |= text is not None
                        yield text is not None
                packed.append((f"{run}/{name}", content, archive.stat().st_mtime))
        if changed:
            write_atomic(archive, pack_files(packed))


def _with_digest(values: Any, where: str, run: str) -> str | None:
    """The record's new text, None where it has a digest.

    Raises:
        DpbenchError: it does not hold, or its new text would say anything else than before.
    """
    if isinstance(values, dict) and "digest" not in values:
        text = text_of(values)
        again = parse_json(text, where)
        record_from(again, where, run)
        if canonical_json({key: value for key, value in again.items() if key != "digest"}) != canonical_json(values):
            raise DpbenchError(f"{where}: would not be the same after it was written", "report this: it is a fault of dpbench")
        return text
    record_from(values, where, run)
    return None

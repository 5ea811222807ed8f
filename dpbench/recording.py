"""Results that outlive their machine: run what a tier is missing, pack the records, file them under `results/recorded/`."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dpbench import environment, paths
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json, write_atomic
from dpbench.records.samples import public
from dpbench.records.store import NAME, read_record, record_text, recorded_records
from dpbench.runner import STEPS
from dpbench.spec.expand import Run
from dpbench.study import Study, study_at

_MEMBER = re.compile(r"^([0-9a-f]{12})/(record\.json|steps\.jsonl)$")
_LARGEST = 8 << 20  # bytes of one member: a record is kilobytes
_BETWEEN = 60.0  # seconds at least between two writes of the archive: with hundreds of records one takes seconds


def record(tier: str, minutes: float, out: Path | None, tables: list[str] | None = None, threads: int = 1) -> None:
    """Run, one after another, what `tier` has no record of; tables without any record first. Needs no Snakemake.

    Args:
        minutes: no run is started that is not expected to end in time, and one that does not is ended.
        out: a .tar.gz with all finished records of the tier, rewritten at the end and at most once a minute until then.
        threads: of runs that want all.

    Raises:
        DpbenchError: unknown tier or table, or the archive cannot be written.
    """
    out = out or paths.root() / f"dpbench-{tier}.tar.gz"
    end = time.monotonic() + 60 * minutes
    found = study_at(tier, tables, "record")
    done = {s.record.run for s in recorded_records()}
    runs = list(_in_order(found, done))
    print(f"{tier}: {len(runs)} runs to make, {len(found.runs) - len(runs)} there already", flush=True)
    pack(found, out)
    packed = time.monotonic()
    for number, run in enumerate(runs, 1):
        if _there(run):  # another recorder has made it since
            continue
        left = end - time.monotonic()
        if left < 60 * run.resources.minutes:
            print(f"stopped in time: {len(runs) - number + 1} runs left, the next may take {run.resources.minutes:g} minutes")
            break
        own = threads if run.resources.threads == "all" else min(run.resources.threads, threads)
        begun = time.monotonic()
        code = _run(run, own, left)
        print(f"[{number}/{len(runs)}] {run.config['job']} {run.id}: {code}, {time.monotonic() - begun:.0f} s", flush=True)
        if time.monotonic() - packed > _BETWEEN:
            pack(found, out)
            packed = time.monotonic()
    pack(found, out)


def _there(run: Run) -> bool:
    return (paths.runs() / run.id / NAME).exists()


def _run(run: Run, threads: int, seconds: float) -> str:
    words = [sys.executable, "-m", "dpbench", "run", canonical_json(run.config), "--out", str(paths.runs() / run.id)]
    words += ["--threads", str(threads), "--warm", str(int(run.resources.small)), "--keep", "--owner", str(os.getpid())]
    try:
        code = subprocess.run(words, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return "ended, as its time was up"
    return "done" if code == 0 else f"failed with exit code {code}"


def _in_order(found: Study, done: set[str]) -> Iterator[Run]:
    """Missing runs: of tables without any record first, parents before children. A parent whose record alone is
    committed is made again where a child needs its artefacts."""
    missing_by_table = []
    for plan in found.plans.values():
        cells = {cell.run for cell in plan.cells}
        missing = {r for r in cells if r not in done and not _there(plan.runs[r])}
        needed = {p.id for r in missing for p in plan.runs[r].parents.values() if not _there(p)}
        wanted = [run for run in plan.runs.values() if run.id in missing | needed]
        missing_by_table.append((len(missing) < len(cells), wanted))
    given: set[str] = set()
    for _, wanted in sorted(missing_by_table, key=lambda item: item[0]):
        for run in wanted:
            if run.id not in given:
                given.add(run.id)
                yield run


def pack(found: Study, out: Path) -> int:
    """Write all finished records of a study to `out`, without text of their datasets; returns how many."""
    packed = 0
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in found.runs:
            folder = paths.runs() / name
            if not (folder / NAME).exists():
                continue
            shown = public(read_record(folder / NAME))
            _add(archive, f"{name}/{NAME}", folder / NAME, record_text(shown).encode())
            if (folder / STEPS).exists():
                _add(archive, f"{name}/{STEPS}", folder / STEPS, (folder / STEPS).read_bytes())
            packed += 1
    write_atomic(out, buffer.getvalue())
    return packed


def _add(archive: tarfile.TarFile, name: str, path: Path, content: bytes) -> None:
    """One member, dated as the file, that says nothing of its owner."""
    member = archive.gettarinfo(path, arcname=name)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def merge(archive: Path) -> list[str]:
    """Check every record of an archive and file it under `results/recorded/<machine>/<run>/`; returns what was done.

    Nothing is filed unless everything in the archive is sound.

    Raises:
        DpbenchError: not an archive of `dpbench record`, or a record that does not hold its schema or its own hash.
    """
    members = _read_members(archive)
    with tempfile.TemporaryDirectory() as scratch:
        checked = []
        for run, files in sorted(members.items()):
            folder = Path(scratch) / run
            for name, content in files.items():
                write_atomic(folder / name, content)
            if NAME not in files:
                raise DpbenchError(f"{archive}: run {run} has no {NAME}", "pack it again with dpbench record")
            found = read_record(folder / NAME)
            if found.run != run:
                raise DpbenchError(
                    f"{archive}: {run}/{NAME} is the record of run {found.run}", "pack it again with dpbench record"
                )
            _check_steps(archive, run, files.get(STEPS, b""))
            files[NAME] = record_text(public(found)).encode()
            checked.append((found, files))
    said = []
    for found, files in checked:
        folder = paths.recorded() / environment.machine(found.environment) / found.run
        kept = folder / NAME
        if kept.exists() and read_record(kept).created >= found.created:
            said.append(f"{found.run}: there already, {read_record(kept).created}")
            continue
        for name, content in sorted(files.items(), reverse=True):  # the record last: with it the run counts as there
            write_atomic(folder / name, content)
        dirty = ", made from a changed working tree" if found.environment.dirty else ""
        said.append(f"{found.run}: filed under {os.path.relpath(folder, paths.root())}{dirty}")
    return said


def _read_members(archive: Path) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(archive, "r:gz") as handle:
            for member in handle:
                match = _MEMBER.match(member.name)
                if match is None or not member.isfile() or member.size > _LARGEST:
                    raise DpbenchError(
                        f"{archive}: unexpected member {member.name!r}", "give an archive written by dpbench record"
                    )
                content = handle.extractfile(member)
                assert content is not None
                found.setdefault(match[1], {})[match[2]] = content.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DpbenchError(
            f"{archive}: cannot be read as an archive ({error})", "give a whole .tar.gz of dpbench record"
        ) from error
    return found


def _check_steps(archive: Path, run: str, content: bytes) -> None:
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        try:
            json.loads(line)
        except json.JSONDecodeError as error:
            raise DpbenchError(
                f"{archive}: {run}/{STEPS} line {number} is not JSON", "pack it again with dpbench record"
            ) from error

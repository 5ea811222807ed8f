"""Results that outlive their machine: run what a tier is missing, pack the records, file them under `results/recorded/`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.execution import environment
from dpbench.execution.plan import write_plan
from dpbench.execution.study import Study, study_at
from dpbench.files import canonical_json, decoded, read_bytes, write_atomic
from dpbench.parsing import parse_json
from dpbench.records.archive import LARGEST, STEPS, pack_files, unpack
from dpbench.records.packed import file_of, file_records, recorded_records
from dpbench.records.samples import public
from dpbench.records.schema import Record
from dpbench.records.store import (
    NAME,
    LeftOut,
    leave_out,
    local_records,
    record_from,
    record_text,
    shown,
)
from dpbench.spec.expand import Run
from dpbench.spec.tables import papers, tables_of

_PACK = "pack it again with dpbench record"
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
    plan = paths.root() / "results" / "plans" / f"{tier}-record.json"
    write_plan(found.plans.values(), plan)
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
        code = _run(run, plan, own, left)
        print(f"[{number}/{len(runs)}] {run.config['job']} {run.id}: {code}, {time.monotonic() - begun:.0f} s", flush=True)
        if time.monotonic() - packed > _BETWEEN:
            pack(found, out)
            packed = time.monotonic()
    pack(found, out)


def _there(run: Run) -> bool:
    return (paths.runs() / run.id / NAME).exists()


def _run(run: Run, plan: Path, threads: int, seconds: float) -> str:
    words = [sys.executable, "-m", "dpbench", "run", canonical_json(run.config), "--out", str(paths.runs() / run.id)]
    words += ["--plan", str(plan), "--threads", str(threads), "--warm", str(int(run.resources.small)), "--keep"]
    words += ["--owner", str(os.getpid())]
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
    """Write all finished records of a study to `out`, without text of their datasets; returns how many.

    One that does not hold is left out, with a warning on stderr.
    """
    files: list[tuple[str, bytes, float]] = []
    packed = 0
    for stored in local_records(found.runs):
        run, steps = stored.record.run, stored.path.parent / STEPS
        files.append((f"{run}/{NAME}", record_text(public(stored.record)).encode(), stored.path.stat().st_mtime))
        packed += 1
        if not steps.exists():
            continue
        if steps.stat().st_size > LARGEST:
            print(f"warning: {run}/{STEPS} is not packed: larger than {LARGEST >> 20} MiB", file=sys.stderr)
        else:
            files.append((f"{run}/{STEPS}", read_bytes(steps, LARGEST), steps.stat().st_mtime))
    write_atomic(out, pack_files(files))
    return packed


def merge(archive: Path, left_out: list[LeftOut] | None = None) -> list[str]:
    """Check every record of an archive and file the sound ones under `results/recorded/<machine>/<paper>.jsonl`.

    An archive that is itself damaged, or holds what no archive of `dpbench record` does, files nothing.

    Args:
        left_out: gets the records that are not sound, each of which is also one warning on stderr.

    Returns:
        What was done, a line for each record that is sound.

    Raises:
        DpbenchError: not a whole archive of `dpbench record`, or a file of recorded results cannot be read or written.
    """
    lines: list[str] = []
    filed: list[tuple[Record, str]] = []
    recorded = {(s.machine, s.record.run): s.record for s in recorded_records()}
    with tempfile.TemporaryDirectory() as scratch:
        for run, names in sorted(unpack(archive, Path(scratch)).items()):
            try:
                record = _checked(archive, Path(scratch) / run, names)
            except DpbenchError as error:
                leave_out(run, f"{archive}: {run}/{NAME}", error, left_out)
                continue
            machine = environment.machine(record.environment)
            before = recorded.get((machine, run))
            if before is not None and before.created >= record.created:
                lines.append(f"{run}: there already, {before.created}")
                continue
            filed.append((public(record), machine))
            dirty = ", made from a changed working tree" if record.environment.dirty else ""
            lines.append(f"{run}: filed in {shown(file_of(record, machine))}{dirty}")
    file_records(filed)
    return lines


def _checked(archive: Path, folder: Path, names: list[str]) -> Record:
    """Return the record in an unpacked folder.

    Raises:
        DpbenchError: it is not there, does not hold, or asks for a table that there is not; or its steps are not JSON.
    """
    run = folder.name
    if NAME not in names:
        raise DpbenchError(f"{archive}: run {run} has no {NAME}", _PACK)
    where = f"{archive}: {run}/{NAME}"
    record = record_from(parse_json(decoded(read_bytes(folder / NAME), where), where, _PACK), where, run)
    for request in record.requests:
        known = tables_of(request.paper) if request.paper in papers() else ()
        if request.table not in known:
            raise DpbenchError(
                f"{where}: asks for the table {request.paper}/{request.table}, which is not here", "update this tree"
            )
    if STEPS in names:
        steps = f"{archive}: {run}/{STEPS}"
        for number, line in enumerate(decoded(read_bytes(folder / STEPS), steps).splitlines(), 1):
            try:
                parse_json(line, steps)
            except DpbenchError as error:
                raise DpbenchError(f"{steps} line {number} is not JSON", _PACK) from error
    return record


def show(run: str) -> str:
    """Return a run's record as indented JSON: this machine's, else the recorded ones of all machines.

    Args:
        run: its id, or the first digits of it.

    Raises:
        DpbenchError: no record is of that run, or of several.
    """
    local = [s for s in local_records() if s.record.run.startswith(run)]
    found = local or [s for s in recorded_records() if s.record.run.startswith(run)]
    if not found:
        raise DpbenchError(f"there is no record of run {run}", "the report and results/long.csv name the runs that there are")
    if len({s.record.run for s in found}) > 1:
        raise DpbenchError(
            f"{len(found)} runs begin with {run}", f"give more digits: {', '.join(s.record.run for s in found[:5])}"
        )
    return "".join(record_text(stored.record) for stored in found)

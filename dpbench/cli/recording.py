"""Record results for other machines: run what a tier is missing, pack the records, file them under `results/recorded/`."""

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
_BETWEEN = 60.0  # seconds at least between two writes of the archive: with hundreds of records one write takes seconds


def record(tier: str, minutes: float, out: Path | None, tables: list[str] | None = None, threads: int = 1) -> None:
    """Run, one after another, the runs of `tier` without a record; tables without any record first. Needs no Snakemake.

    Args:
        minutes: a run that is not expected to end within this time is not started, and one that does not end is killed.
        out: a .tar.gz with all finished records of the tier, rewritten at the end and at most once a minute until then.
        threads: CPU threads of runs that take all.

    Raises:
        DpbenchError: unknown tier or table, or the archive cannot be written.
    """
    out = out or paths.root() / f"dpbench-{tier}.tar.gz"
    end = time.monotonic() + 60 * minutes
    selected = study_at(tier, tables, "record")
    done = {s.record.run for s in recorded_records()}
    runs = list(_in_order(selected, done))
    print(f"{tier}: {len(runs)} runs to do, {len(selected.runs) - len(runs)} done already", flush=True)
    plan = paths.root() / "results" / "plans" / f"{tier}-record.json"
    write_plan(selected.plans.values(), plan)
    pack(selected, out)
    packed = time.monotonic()
    for number, run in enumerate(runs, 1):
        if _is_finished(run):  # by another recorder, in the meantime
            continue
        left = end - time.monotonic()
        if left < 60 * run.resources.minutes:
            print(f"stopped in time: {len(runs) - number + 1} runs left, the next may take {run.resources.minutes:g} minutes")
            break
        run_threads = threads if run.resources.threads == "all" else min(run.resources.threads, threads)
        begun = time.monotonic()
        code = _run(run, plan, run_threads, left)
        print(f"[{number}/{len(runs)}] {run.config['job']} {run.id}: {code}, {time.monotonic() - begun:.0f} s", flush=True)
        if time.monotonic() - packed > _BETWEEN:
            pack(selected, out)
            packed = time.monotonic()
    pack(selected, out)


def _is_finished(run: Run) -> bool:
    return (paths.runs() / run.id / NAME).exists()


def _run(run: Run, plan: Path, threads: int, seconds: float) -> str:
    words = [sys.executable, "-m", "dpbench", "run", canonical_json(run.config), "--out", str(paths.runs() / run.id)]
    words += ["--plan", str(plan), "--threads", str(threads), "--warm", str(int(run.resources.small)), "--keep"]
    words += ["--owner", str(os.getpid())]
    try:
        code = subprocess.run(words, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return "killed, as its time was up"
    return "done" if code == 0 else f"failed with exit code {code}"


def _in_order(selected: Study, done: set[str]) -> Iterator[Run]:
    """Yield the missing runs: those of tables without any record first, parents before children.

    A parent of which only the record is committed runs again where a child needs its artefacts.
    """
    missing_by_table = []
    for plan in selected.plans.values():
        cells = {cell.run for cell in plan.cells}
        missing = {r for r in cells if r not in done and not _is_finished(plan.runs[r])}
        needed = {p.id for r in missing for p in plan.runs[r].parents.values() if not _is_finished(p)}
        table_runs = [run for run in plan.runs.values() if run.id in missing | needed]
        missing_by_table.append((len(missing) < len(cells), table_runs))
    yielded: set[str] = set()
    for _, table_runs in sorted(missing_by_table, key=lambda item: item[0]):
        for run in table_runs:
            if run.id not in yielded:
                yielded.add(run.id)
                yield run


def pack(selected: Study, out: Path) -> int:
    """Write all finished records of a study to `out`, without text of their datasets; return their number.

    An invalid record is left out, with a warning on stderr.
    """
    files: list[tuple[str, bytes, float]] = []
    packed = 0
    for stored in local_records(selected.runs):
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
    """Check every record of an archive and file the valid ones under `results/recorded/<machine>/<paper>.jsonl`.

    Nothing is filed from an archive that is damaged, or that contains what `dpbench record` does not write.

    Args:
        left_out: the invalid records are appended to it; each is also one warning on stderr.

    Returns:
        A line for each valid record, which says what was done with it.

    Raises:
        DpbenchError: not a complete archive of `dpbench record`, or a file of recorded results cannot be read or written.
    """
    lines: list[str] = []
    accepted: list[tuple[Record, str]] = []
    recorded = {(s.machine, s.record.run): s.record for s in recorded_records()}
    with tempfile.TemporaryDirectory() as scratch:
        for run, names in sorted(unpack(archive, Path(scratch)).items()):
            try:
                record = _checked(archive, Path(scratch) / run, names)
            except DpbenchError as error:
                leave_out(run, f"{archive}: {run}/{NAME}", error, left_out)
                continue
            machine = environment.machine(record.environment)
            old = recorded.get((machine, run))
            if old is not None and old.created >= record.created:
                lines.append(f"{run}: filed already, {old.created}")
                continue
            accepted.append((public(record), machine))
            dirty = ", from a changed working tree" if record.environment.dirty else ""
            lines.append(f"{run}: filed in {shown(file_of(record, machine))}{dirty}")
    file_records(accepted)
    return lines


def _checked(archive: Path, folder: Path, names: list[str]) -> Record:
    """Return the record in an unpacked folder.

    Raises:
        DpbenchError: it is missing or invalid, or names an unknown table; or its steps are not JSON.
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
        run: the id of the run, or its first digits.

    Raises:
        DpbenchError: no record is of that run, or several runs begin with these digits.
    """
    local = [s for s in local_records() if s.record.run.startswith(run)]
    stored_records = local or [s for s in recorded_records() if s.record.run.startswith(run)]
    if not stored_records:
        raise DpbenchError(f"there is no record of run {run}", "the report and results/long.csv list all runs")
    if len({s.record.run for s in stored_records}) > 1:
        raise DpbenchError(
            f"{len(stored_records)} runs begin with {run}",
            f"give more digits: {', '.join(s.record.run for s in stored_records[:5])}",
        )
    return "".join(record_text(stored.record) for stored in stored_records)

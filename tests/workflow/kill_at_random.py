"""Kill processes at random moments and at chosen ones, start Snakemakes two at a time, and count what goes wrong.

`python tests/workflow/kill_at_random.py --random 100 --chosen 20 --pairs 20`: a line for each trial, exit code 1 for any fault.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import psutil
from yard import TABLES, Faults, Yard

KINDS = ("cold", "caller", "listener", "cold", "record", "caller", "cold", "listener", "snakemake", "snakemake alone")
"""Who is killed, in turn."""

_DIE = """
import os, signal, sys
def hit(count=[0]):
    count[0] += 1
    if count[0] == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
{patch}
from dpbench.cli import main
sys.exit(main(sys.argv[1:]))
"""
_RENAME = """
real = os.replace
def replace(source, target, **more):
    hits = {part!r} in str({which})
    if hits and not {after}:
        hit()
    real(source, target, **more)
    if hits and {after}:
        hit()
os.replace = replace
"""
_CALL = """
from dpbench import {module} as module
real = module.{name}
def patched(*values, **more):
    hit()
    return real(*values, **more)
module.{name} = patched
"""
_STEP = """
from dpbench.execution.tracking import StepLog
real = StepLog.write
def write(*values, **more):
    real(*values, **more)
    hit()
StepLog.write = write
"""
_WAIT = """
import time
from dpbench.execution.tracking import StepLog
def write(*values, **more):
    time.sleep(600)
StepLog.write = write
"""


def renaming(part: str, nth: int = 1, which: str = "target", after: bool = False) -> str:
    return _DIE.format(nth=nth, patch=_RENAME.format(part=part, which=which, after=after))


def calling(module: str, name: str) -> str:
    return _DIE.format(nth=1, patch=_CALL.format(module=module, name=name))


class Moment(NamedTuple):
    """A moment in a run at which it is killed."""

    name: str
    code: str
    over: bool  # a finished record
    weights: bool = False  # of a run that leaves an artefact


MOMENTS = (
    Moment("between mkstemp and rename of the config", renaming("config.json"), over=False),
    Moment("between mkstemp and rename of the record", renaming("record.json"), over=False),
    Moment("between mkstemp and rename of the record, over a finished one", renaming("record.json"), over=True),
    Moment("between artefact and record", calling("runner", "write_record"), over=False, weights=True),
    Moment("between artefact and record, over a finished one", calling("runner", "write_record"), over=True, weights=True),
    Moment("in the middle of steps", _DIE.format(nth=2, patch=_STEP), over=False),
    Moment("in the middle of steps, over a finished record", _DIE.format(nth=2, patch=_STEP), over=True),
    Moment("before the first of the new files is in place", renaming("/.next/", 1, "source"), over=True, weights=True),
    Moment("between the new files", renaming("/.next/", 2, "source"), over=True, weights=True),
    Moment("before the new record is in place", renaming("/.next/record.json", 1, "source"), over=True, weights=True),
    Moment("after the new record is in place", renaming("/.next/record.json", 1, "source", after=True), over=True, weights=True),
)


class Trials:
    """Every trial begins with all records, or all but one, and ends with what must hold."""

    def __init__(self, yard: Yard, seed: int) -> None:
        self.yard, self.random = yard, random.Random(seed)
        self.light = sorted(set(yard.base) - {yard.with_weights})
        self.longest = max(self.light, key=lambda run: yard.base[run]["seconds"])
        begun = time.monotonic()
        yard.end(yard.run(self.longest), "cold")
        self.cold = time.monotonic() - begun
        begun = time.monotonic()
        yard.end(yard.run(self.longest, warm=True), "warm")
        self.warm = time.monotonic() - begun

    # --- random moments ---

    def at_random(self, kind: str, number: int) -> Faults:
        if kind.startswith("snakemake"):
            return self._kill_snakemake(kind, number)
        if kind == "record":
            return self._kill_recorder(number)
        run = self.random.choice(self.light)
        is_over = self.random.random() < 0.5
        self.yard.restore()
        if not is_over:
            self.yard.forget(run)
        before = self.yard.there()
        process = self.yard.run(run, warm=kind != "cold")
        delay = self.random.uniform(0.2, 1.2) * (self.cold if kind == "cold" else self.warm)
        time.sleep(delay)
        told = f"{kind} {number}, {run}{' over a finished record' if is_over else ''}, killed after {delay:.2f} s"
        if kind == "listener":
            for listener in self.yard.listeners():
                with suppress(psutil.Error):
                    listener.kill()
            faults = self.yard.end(process, told)  # goes on without one
        else:
            process.kill()
            faults = self.yard.end(process, told, None)
        faults += self.yard.orphans(told)
        faults += self.yard.faults(before, told)
        return faults.__iadd__(self.yard.run_again(run, told))

    def _kill_snakemake(self, kind: str, number: int) -> Faults:
        self.yard.restore()
        self.yard.forget(*self.random.sample(self.light, len(self.light) // 2))
        forced = self.random.random() < 0.3
        process = self.yard.snakemake(*(["--forcerun", "run"] if forced else []))
        before = self.yard.there()
        delay = self.random.uniform(0.1, 1.0) * self.yard.snakemake_seconds
        told = f"{kind} {number}{' --forcerun' if forced else ''}, killed after {delay:.2f} s"
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        with suppress(ProcessLookupError):
            (os.kill if kind.endswith("alone") else os.killpg)(process.pid, signal.SIGKILL)
        faults = self.yard.end(process, told, None)
        faults += self.yard.orphans(told)
        faults += self.yard.faults(before, told)
        return faults.__iadd__(self._plain_snakemake(told))

    def _plain_snakemake(self, told: str) -> Faults:
        before = self.yard.there()
        faults = self.yard.end(self.yard.snakemake(), f"{told}, then snakemake")
        faults += self.yard.faults(before, f"{told}, then snakemake")
        return faults.__iadd__(self._tables(told))

    def _tables(self, told: str) -> Faults:
        is_right = self.yard._tables() == self.yard.tables
        missing = set(self.yard.base) - self.yard.there()
        return Faults(wrong=[] if is_right else [f"{told}: a table"], failed=[f"{told}: no record of {run}" for run in missing])

    def _kill_recorder(self, number: int, how: int = signal.SIGKILL) -> Faults:
        self.yard.restore()
        gone = self.random.sample(self.light, 2)
        self.yard.forget(*gone)
        before = self.yard.there()
        words = ("record", "--tier", "smoke", "--minutes", "60", "--threads", "1", "--tables", *TABLES)
        process = self.yard.dpbench(*words, "--out", str(self.yard.folder / "results" / "records.tar.gz"))
        delay = self.random.uniform(0.3, 1.2) * (self.cold + self.warm)
        told = f"dpbench record {number}, signal {how} after {delay:.2f} s"
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(how)
        faults = self.yard.end(process, told, None)
        faults += self.yard.orphans(told)
        faults += self.yard.faults(before, told)
        for run in gone:
            faults += self.yard.run_again(run, told)
        return faults

    # --- chosen moments ---

    def chosen(self) -> Iterator[tuple[str, Callable[[], Faults]]]:
        for moment in MOMENTS:
            yield moment.name, lambda moment=moment: self._at_moment(moment)
        yield "the holder of a run's lock, while another waits", self._holder_killed
        yield "the listener as it forks", lambda: self._warm_killed(lambda: self.yard.forks(), self.yard.listeners)
        yield "the listener in the middle of a run", lambda: self._warm_killed(self._has_begun, self.yard.listeners)
        yield "the fork in the middle of a run", lambda: self._warm_killed(self._has_begun, self.yard.forks, codes=(0, 137))
        yield "the listener stopped before a run", lambda: self._warm_killed(None, self.yard.listeners, signal.SIGSTOP)
        yield "the listener stopped in a run", lambda: self._warm_killed(self._has_begun, self.yard.listeners, signal.SIGSTOP)
        yield "dpbench record, told to end", lambda: self._kill_recorder(0, signal.SIGTERM)
        yield "a table between mkstemp and rename", self._table_killed
        yield "Snakemake alone as its first run begins", lambda: self._snakemake_in_a_run(os.kill)
        yield (
            "Snakemake's group as its first run begins, forced",
            lambda: self._snakemake_in_a_run(os.killpg, "--forcerun", "run"),
        )

    def _at_moment(self, moment: Moment) -> Faults:
        run = self.yard.with_weights if moment.weights else self.longest
        self.yard.restore()
        if not moment.over:
            self.yard.forget(run)
        before = self.yard.there()
        process = self.yard.start("-c", moment.code, *self.yard.run_words(run))
        faults = self.yard.end(process, moment.name, (-signal.SIGKILL,))
        faults += self.yard.orphans(moment.name)
        faults += self.yard.faults(before, moment.name)
        return faults.__iadd__(self.yard.run_again(run, moment.name))

    def _holder_killed(self) -> Faults:
        told, run = "the holder of a lock", self.longest
        self.yard.restore()
        self.yard.forget(run)
        steps = self.yard.runs / run / "steps.jsonl"
        holder = self.yard.start("-c", _DIE.format(nth=0, patch=_WAIT), *self.yard.run_words(run))
        self.yard.wait_until(steps.exists, holder)
        waiting = self.yard.run(run)
        time.sleep(self.cold)
        is_waiting = waiting.poll() is None
        holder.kill()
        faults = self.yard.end(holder, told, None)
        faults += self.yard.end(waiting, told)
        faults.failed.extend([] if is_waiting else [f"{told}: the other did not wait"])
        return faults.__iadd__(self.yard.run_again(run, told))

    def _has_begun(self) -> bool:
        steps = self.yard.runs / self.longest / "steps.jsonl"
        return bool(self.yard.forks()) and steps.exists()

    def _warm_killed(
        self,
        moment: Callable[[], object] | None,
        whom: Callable[[], list[psutil.Process]],
        how: int = signal.SIGKILL,
        codes: tuple[int, ...] = (0,),
    ) -> Faults:
        told, run = f"{whom.__name__}, signal {how}", self.longest
        self.yard.restore()
        self.yard.end(self.yard.run(run, warm=True), told)  # so that a listener is there
        self.yard.forget(run)
        hit = [] if moment else whom()
        for process in hit:
            process.send_signal(how)
        caller = self.yard.run(run, warm=True)
        if moment and self.yard.wait_until(moment, caller):
            for process in whom():
                with suppress(psutil.Error):
                    process.send_signal(how)
                    hit.append(process)
        faults = self.yard.end(caller, told, codes)
        faults += self.yard.run_again(run, told)
        for process in hit:
            with suppress(psutil.Error):
                process.kill()
        return faults.__iadd__(self.yard.orphans(told))

    def _table_killed(self) -> Faults:
        told = "a table"
        self.yard.restore()
        words = (
            "table",
            TABLES[0],
            "--tier",
            "smoke",
            "--out",
            str(self.yard.folder / f"results/tables/{TABLES[0]}").rpartition("/")[0],
        )
        process = self.yard.start("-c", renaming(".csv"), *words)
        faults = self.yard.end(process, told, (-signal.SIGKILL,))
        return faults.__iadd__(self._plain_snakemake(told))

    def _snakemake_in_a_run(self, kill: Callable[[int, int], None], *arguments: str) -> Faults:
        told = f"snakemake {' '.join(arguments)} in a run"
        self.yard.restore()
        if not arguments:
            self.yard.forget(*self.light)
        before = self.yard.there()
        process = self.yard.snakemake(*arguments)
        self.yard.wait_until(self.yard.forks, process)
        with suppress(ProcessLookupError):
            kill(process.pid, signal.SIGKILL)
        faults = self.yard.end(process, told, None)
        faults += self.yard.orphans(told)
        faults += self.yard.faults(before, told)
        return faults.__iadd__(self._plain_snakemake(told))

    # --- two at once ---

    def pair(self, number: int) -> Faults:
        """Two Snakemakes in one folder, one of them forced in every fourth pair; in others a run by hand beside them."""
        self.yard.restore()
        forced, by_hand = number % 4 == 1, number % 4 == 2
        if not forced:
            self.yard.forget(*self.random.sample(self.light, len(self.light) - 1))
        apart = self.random.uniform(0, 1.0) * self.yard.snakemake_seconds
        told = f"pair {number}, {apart:.1f} s apart{', one forced' if forced else ', a run by hand beside' if by_hand else ''}"
        first = self.yard.snakemake(*(["--forcerun", "run"] if forced else []))
        lost: set[str] = set()
        seen = self._watch(lambda: False, lost, self.yard.there(), apart)
        second = self.yard.snakemake()
        processes = [first, second] + ([self.yard.run(self.longest)] if by_hand else [])
        self._watch(lambda: all(p.poll() is not None for p in processes), lost, seen, 2 * 300)
        faults = Faults(lost=[f"{told}: {run} for a time" for run in sorted(lost)])
        for process in processes:
            faults += self.yard.end(process, told)
        faults += self.yard.faults(set(self.yard.base), told)
        faults += self._tables(told)
        plan = self.yard.snakemake("--dry-run")
        text, _ = plan.communicate(timeout=300)
        if not by_hand and "Nothing to be done" not in text:  # a run by hand leaves a record that is newer than a table
            faults.failed.append(f"{told}: a third one has work to do: {text[-1500:]}")
        return faults.__iadd__(self.yard.orphans(told))

    def _watch(self, until: Callable[[], bool], lost: set[str], seen: set[str], seconds: float) -> set[str]:
        """Collect in `lost` the records that were there and are not, 50 times a second."""
        end = time.monotonic() + seconds
        while not until() and time.monotonic() < end:
            there = self.yard.there()
            lost |= seen - there
            seen |= there
            time.sleep(0.02)
        return seen


def trials(
    kill_trials: Trials, random_count: int, chosen_count: int, pair_count: int
) -> Iterator[tuple[str, Callable[[], Faults]]]:
    for number, kind in enumerate(islice(cycle(KINDS), random_count)):
        yield f"random: {kind}", lambda kind=kind, number=number: kill_trials.at_random(kind, number)
    for name, trial in islice(kill_trials.chosen(), chosen_count):
        yield f"chosen: {name}", trial
    for number in range(pair_count):
        yield "pair", lambda number=number: kill_trials.pair(number)


def prove(
    folder: Path, random_count: int, chosen_count: int, pair_count: int, seed: int, only: str = ""
) -> tuple[Counter[str], Faults]:
    """(trials of each group, all that went wrong)."""
    yard = Yard(folder)
    counts: Counter[str] = Counter()
    faults = Faults()
    try:
        for name, trial in trials(Trials(yard, seed), random_count, chosen_count, pair_count):
            if not re.search(only, name):
                continue
            begun = time.monotonic()
            wrong = trial()
            print(
                f"{'FAULT' if wrong else 'ok'}\t{time.monotonic() - begun:.1f} s\t{name}\t{vars(wrong) if wrong else ''}",
                flush=True,
            )
            counts[name.partition(":")[0]] += 1
            faults += wrong
    finally:
        yard.close()
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=100, metavar="N")
    parser.add_argument("--chosen", type=int, default=99, metavar="N")
    parser.add_argument("--pairs", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="REGEX", help="trials whose name matches")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="yard-") as folder:
        counts, faults = prove(Path(folder), args.random, args.chosen, args.pairs, args.seed, args.only)
    print(dict(counts), {kind: len(faults_of_kind) for kind, faults_of_kind in vars(faults).items()})
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())

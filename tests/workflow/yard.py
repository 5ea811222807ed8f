"""A copy of the tree in which processes are killed, and what must hold there whenever one has been."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from working_tree import Tree

from dpbench.execution.study import study
from dpbench.spec.config import Config

TABLES = ("dpzero/quadratic", "automatic/glue_base")
"""Two small studies: runs of a second and runs of a few."""
STUDENTS = "compression/dpkd"
"""Of these only the teacher, a run that leaves its weights."""
PATIENCE = 600.0
"""Seconds after which a process that should have ended counts as hung."""
ORPHANS = 6.0
"""Seconds in which whatever worked for a killed process has to end."""
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")
_TIMED = {"s", "ms", "s/step", "examples/s", "tokens/s", "ms/example"}


def contents(record: Path) -> dict[str, Any]:
    return json.loads(record.read_text(encoding="utf-8"))


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on when, how or how often a run was made."""
    return {
        f"{metric['name']} {sorted(metric['labels'].items())}": (metric["value"], metric["rounds"])
        for metric in record["metrics"]
        if metric["unit"] not in _TIMED
    }


@dataclass
class Faults:
    """What went wrong, by kind."""

    lost: list[str] = field(default_factory=list)
    half_written: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __iadd__(self, other: Faults) -> Faults:
        for kind, faults in vars(other).items():
            getattr(self, kind).extend(faults)
        return self


class Yard:
    """A tree with the records of two small studies, each made once and known by its numbers."""

    def __init__(self, folder: Path) -> None:
        self.tree = Tree.copy(folder / "tree")
        self.folder = self.tree.folder
        shutil.rmtree(self.folder / "results" / "recorded")  # a thousand files for every table to look at
        self.runs = self.folder / "results" / "runs"
        self._scratch = folder / "scratch"
        self._scratch.mkdir()
        self.environment = self.tree.environment | {
            "TMPDIR": str(self._scratch),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("DPBENCH_DATA", "DPBENCH_MODELS", "DPBENCH_ROOT", "DPBENCH_CACHE"):
            self.environment.pop(name, None)
        runs = study(Config(tier="smoke", tables=[STUDENTS])).runs.values()
        self.with_weights = next(run.parents["teacher"].id for run in runs if run.parents)
        self.base: dict[str, dict[str, Any]] = {}
        begun = time.monotonic()
        try:
            self._finish(self.snakemake())
        except BaseException:
            self.close()
            raise
        self.snakemake_seconds = time.monotonic() - begun
        self.base = {path.parent.name: contents(path) for path in self._records()}
        self.tables = self._tables()
        self._kept = folder / "kept"
        shutil.copytree(self.runs, self._kept)

    # --- what is started ---

    def start(self, *words: str, **keywords: Any) -> subprocess.Popen[str]:
        """A process of the yard, in a group of its own; its output is read by `end`."""
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **keywords,
        )

    def dpbench(self, *words: str) -> subprocess.Popen[str]:
        return self.start("-m", "dpbench", *words)

    def run_words(self, run: str, warm: bool = False) -> tuple[str, ...]:
        config = self.folder / "results" / f"{run}.config.json"
        config.write_text(json.dumps(self.base[run]["config"]), encoding="utf-8")
        out = str(self.runs / run)
        return ("run", str(config), "--out", out, "--threads", "1", "--warm", str(int(warm)), "--quiet")

    def run(self, run: str, warm: bool = False) -> subprocess.Popen[str]:
        return self.dpbench(*self.run_words(run, warm))

    def snakemake(self, *arguments: str) -> subprocess.Popen[str]:
        settings = ("tier=smoke", f"tables={','.join((*TABLES, STUDENTS))}")
        targets = [f"results/tables/{table}.csv" for table in TABLES]
        targets += [f"results/runs/{run}/record.json" for run in self.base or [self.with_weights]]  # not only what a table lacks
        return self.start("-m", "snakemake", "--cores", "1", *arguments, "--config", *settings, "--", *targets)

    def _finish(self, process: subprocess.Popen[str]) -> str:
        text, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, text[-5000:]
        return text

    # --- what is there ---

    def _records(self) -> Iterator[Path]:
        yield from self.runs.glob("*/record.json")

    def _tables(self) -> dict[str, str]:
        return {table: (self.folder / f"results/tables/{table}.csv").read_text(encoding="utf-8") for table in TABLES}

    def there(self) -> set[str]:
        """Runs that have a record."""
        return {path.parent.name for path in self._records()}

    def forget(self, *runs: str) -> None:
        for run in runs or tuple(self.base):
            shutil.rmtree(self.runs / run, ignore_errors=True)

    def restore(self) -> None:
        """Every record as it was made at first."""
        shutil.rmtree(self.runs, ignore_errors=True)
        shutil.copytree(self._kept, self.runs)

    def processes(self) -> list[psutil.Process]:
        """All that run here."""
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_ours = process.environ().get("TMPDIR") == str(self._scratch)
                if is_ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
        return processes

    def listeners(self) -> list[psutil.Process]:
        return [process for process in self._warm() if os.getsid(process.pid) == process.pid]

    def forks(self) -> list[psutil.Process]:
        """Commands that listeners run."""
        return [process for process in self._warm() if os.getsid(process.pid) != process.pid]

    def _warm(self) -> list[psutil.Process]:
        warm_processes = []
        for process in self.processes():
            with suppress(psutil.Error, ProcessLookupError):
                if "dpbench.execution.warm" in process.cmdline() and os.getsid(process.pid):
                    warm_processes.append(process)
        return warm_processes

    def close(self) -> None:
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()

    # --- what must hold ---

    def faults(self, before: set[str], told: str) -> Faults:
        """What is wrong with the records now. before: runs that had one."""
        faults = Faults(lost=[f"{told}: {run}" for run in before - self.there()])
        for path in self._records():
            name = f"{told}: {path.parent.name}"
            try:
                record = contents(path)
            except ValueError as error:
                faults.half_written.append(f"{name}: {error}")
                continue
            if numbers(record) != numbers(self.base[path.parent.name]):
                faults.wrong.append(name)
            if (path.parent / ".next" / "record.json").exists():
                continue  # the next to come here puts the rest in place
            for file, digest in record["artefacts"].items():
                artefact = path.parent / file
                if not artefact.exists() or hashlib.sha256(artefact.read_bytes()).hexdigest() != digest:
                    faults.half_written.append(f"{name}: {file}")
        return faults

    def orphans(self, told: str) -> Faults:
        """Processes that work for nobody; a listener may stay until nobody has asked for a while."""

        def working() -> list[psutil.Process]:
            idle = {process.pid for process in self.listeners()}
            return [process for process in self.processes() if process.pid not in idle]

        end = time.monotonic() + ORPHANS
        while (left := working()) and time.monotonic() < end:
            time.sleep(0.1)
        faults = Faults()
        for process in left:
            with suppress(psutil.Error):
                faults.orphans.append(f"{told}: {process.pid} {' '.join(process.cmdline())[:100]}")
                process.kill()
        return faults

    def end(self, process: subprocess.Popen[str], told: str, codes: tuple[int, ...] | None = (0,)) -> Faults:
        """Wait for a process; codes: those that it may end with, None for any."""
        try:
            text, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Faults(hangs=[told])
        if codes is not None and process.returncode not in codes:
            return Faults(failed=[f"{told}: exit code {process.returncode}: {text[-600:]}"])
        return Faults()

    def run_again(self, run: str, told: str) -> Faults:
        """A plain run must end well now, and leave a whole record and nothing else."""
        told = f"{told}, then run again"
        faults = self.end(self.run(run, warm=True), told)
        faults += self.faults({run}, told)
        left = [path.name for path in (self.runs / run).iterdir() if _TEMPORARY.fullmatch(path.name) or path.name == ".next"]
        faults.left_over.extend(f"{told}: {name}" for name in left)
        lines = (self.runs / run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        kept = (self._kept / run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        if len(lines) != len(kept):
            faults.wrong.append(f"{told}: {len(lines)} steps, not {len(kept)}")
        return faults

    def wait_until(self, condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> Any:
        """What the condition says once it says something; None where the process ends before."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if answer := condition():
                return answer
            if process.poll() is not None:
                return None
            time.sleep(0.02)
        return None

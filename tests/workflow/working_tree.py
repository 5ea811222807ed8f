"""A copy of the working tree, and Snakemake started in it the way a user does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
JOB = re.compile(r"^(?:local)?rule (?P<rule>\w+):\n(?P<body>(?:    .*\n)*)", re.MULTILINE)
OUTPUT = re.compile(r"^    output: (.*)$", re.MULTILINE)


def tracked() -> list[str]:
    """What git tracks or would: nothing that was built here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    return [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@dataclass(frozen=True)
class Tree:
    """A working tree of its own."""

    folder: Path

    @classmethod
    def copy(cls, folder: Path) -> Tree:
        for name in tracked():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        # first on the path, so that the copy is what runs and not the installed package
        return os.environ | {"PYTHONPATH": str(self.folder)}

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", *arguments]

    def snakemake(self, *arguments: str, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
        """stdout and stderr come together in `.stdout`."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def planned(self, *arguments: str) -> list[tuple[str, frozenset[str]]]:
        """(rule, outputs) of every job that a dry run lists."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout
        return jobs_in(done.stdout)

    def records(self) -> dict[str, Path]:
        """Run -> its record."""
        return {path.parent.name: path for path in self.folder.glob("results/runs/*/record.json")}


def jobs_in(printed: str) -> list[tuple[str, frozenset[str]]]:
    """(rule, outputs) of every job in what a dry run prints."""
    return [(job["rule"], _outputs(job["body"])) for job in JOB.finditer(printed)]


def _outputs(body: str) -> frozenset[str]:
    match = OUTPUT.search(body)
    return frozenset(name.removesuffix(" (update)") for name in match[1].split(", ")) if match else frozenset()

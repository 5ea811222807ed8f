"""Small C functions, compiled on the machine that calls them. Where there is no compiler, their callers have another way."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

from dpbench import paths

# No -ffast-math: linked into a shared object it would switch off denormal numbers for the whole process.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_SECONDS = 60  # a compiler that hangs must not hang a run


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, compiled once a machine and kept in the cache folder.

    Returns None where there is no compiler, it fails, or `DPBENCH_NATIVE=0`.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix" or os.environ.get("DPBENCH_NATIVE") == "0":
        return None
    made = paths.cache() / "native" / f"{source.stem}-{_identity(source, compiler)}.so"
    try:
        if not made.exists():
            _compile(compiler, source, made)
        return ctypes.CDLL(str(made))
    except (OSError, subprocess.SubprocessError):
        return None


def _identity(source: Path, compiler: str) -> str:
    """What the machine code depends on: a cache folder may be shared by machines whose processors differ."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    parts = (source.read_text(), compiler, *FLAGS, platform.platform(), platform.machine(), *features)
    return sha256("\0".join(parts).encode()).hexdigest()[:12]


def _compile(compiler: str, source: Path, made: Path) -> None:
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:  # beside it, so that the rename is one step
        part = Path(folder) / made.name
        words = [compiler, *FLAGS, str(source), "-o", str(part)]
        subprocess.run(words, check=True, capture_output=True, timeout=_SECONDS)
        os.replace(part, made)

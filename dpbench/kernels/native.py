"""Small C functions, compiled on the machine that calls them. Callers have another way where there is no compiler."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from dpbench import paths

# No -ffast-math: linked into a shared object it would switch off denormal numbers for the full process.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
_SECONDS = 60  # a compiler that hangs must not hang a run


Signatures = Mapping[str, tuple[type | None, Sequence[type]]]
"""The types of the result and of the arguments of C functions by their names."""


def library(source: Path, signatures: Signatures, openmp: bool = False) -> ctypes.CDLL | None:
    """Return the functions of a C file, compiled once on each machine and kept in the cache folder.

    Args:
        openmp: Whether it has parallel regions. They use torch's threads, as a second set would compete with them for the cores.

    Returns:
        None where there is no compiler, it fails, or `DPBENCH_NATIVE=0`; with openmp also where torch has no such threads.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix" or os.environ.get("DPBENCH_NATIVE") == "0":
        return None
    runtime = _openmp_of_torch() if openmp else None
    if openmp and runtime is None:
        return None
    binary = paths.cache() / "native" / f"{source.stem}-{_identity(source, compiler, runtime)}.so"
    try:
        if not binary.exists():
            _compile(compiler, source, binary, runtime)
        functions = ctypes.CDLL(str(binary))
    except (OSError, subprocess.SubprocessError):
        return None
    for name, (result, arguments) in signatures.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions


def _openmp_of_torch() -> str | None:
    """Return the file of the OpenMP runtime that torch has loaded: GNU's, or one with the same symbols."""
    import torch

    maps = Path("/proc/self/maps")
    if not torch.backends.openmp.is_available() or not maps.exists():
        return None
    loaded = dict.fromkeys(line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "/" in line)
    return next((path for path in loaded if Path(path).name.startswith(("libgomp", "libiomp5"))), None)


def _identity(source: Path, compiler: str, runtime: str | None) -> str:
    """Return a digest of all that the machine code depends on, as machines with different processors may share a cache folder."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    parts = (_text(source), compiler, *FLAGS, runtime or "", platform.platform(), platform.machine(), *features)
    return sha256("\0".join(parts).encode()).hexdigest()[:12]


def _text(source: Path) -> str:
    """Return the text of a C file and of the files beside it that it includes."""
    text = source.read_text()
    return "\0".join([text, *(_text(source.parent / name) for name in re.findall(r'#include "(.+)"', text))])


def _compile(compiler: str, source: Path, binary: Path, runtime: str | None) -> None:
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:  # beside it, so that the rename is one step
        unfinished = Path(folder) / binary.name
        commands = [[compiler, *FLAGS, "-shared", str(source), "-o", str(unfinished)]]
        if runtime is not None:  # in two steps: a compiler that links with -fopenmp would use another runtime
            object_file = str(unfinished.with_suffix(".o"))
            commands = [
                [compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", object_file],
                [compiler, "-shared", object_file, runtime, "-o", str(unfinished)],
            ]
        for command in commands:
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        os.replace(unfinished, binary)

"""Describe the hardware and software of a run, without host name and paths."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import psutil

from dpbench import __version__, paths
from dpbench.errors import DpbenchError
from dpbench.records.schema import Environment

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "opacus",
    "peft",
    "dp-accounting",
    "numpy",
    "safetensors",
    "sacrebleu",
    "rouge-score",
    "nltk",
)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str = "cpu", threads: int = 1) -> Environment:
    """Return the environment of this process, for a run on `device`."""
    commit, dirty = _git()
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={"dpbench": __version__} | {name: installed for name in PACKAGES if (installed := _version(name))},
        device=device,
        device_name=_device_name(device),
        cpu=cpu_name(),
        cores=cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        threads=threads,
        commit=commit,
        dirty=dirty,
    )


def machine(environment: Environment) -> str:
    """Return a folder name for records of this kind of machine: `amd-epyc-2-cores`, `nvidia-h100-80gb-hbm3`."""
    name = environment.device_name if environment.device != "cpu" else f"{environment.cpu} {environment.cores} cores"
    words = "".join(c.lower() if c.isalnum() else " " for c in name).split()
    return "-".join(words)[:60] or "unknown"


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    if device == "cpu":
        return cpu_name()
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(device) if torch else device


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> tuple[str | None, bool | None]:
    """Return (commit, whether tracked files differ from it); None outside a checkout."""

    def ask(*words: str) -> str | None:
        try:
            process = subprocess.run(["git", *words], cwd=paths.root(), capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    changes = ask("status", "--porcelain", "--untracked-files=no") if commit else None
    return commit, None if changes is None else bool(changes)


def require_device(device: str) -> torch.device:
    """Return the device, or fail before long work if it is not available.

    Raises:
        DpbenchError: no CUDA device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DpbenchError("this run needs a CUDA device and none is available", "choose another tier, or run on a GPU machine")
    return torch.device(device)

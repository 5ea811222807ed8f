"""Fill a folder with what a machine without a network needs for a tier: wheels, data, weights and a script to activate them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from packaging.utils import canonicalize_name

from dpbench import plugins
from dpbench.cli import packages
from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.study import study_at
from dpbench.models.sources import FILES, WEIGHTS, file_of
from dpbench.spec.sources import Source

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "opacus", "dp-accounting", "pydantic", "pyyaml"),
    *("numpy", "scipy", "cryptography", "pillow", "pyarrow", "tqdm", "filelock", "psutil", "packaging", "peft", "jiter", "typer"),
    *("sacrebleu", "rouge-score", "nltk"),
)
"""The packages that `dpbench record` imports; the report and the workflow run on another machine."""
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17)  # manylinux names, newest first; pip takes each only as it is spelled

ACTIVATE = """\
# source bundle/activate.sh: installs the wheels beside what the machine has, and points dpbench at data and weights.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
site=${DPBENCH_SITE:-/tmp/dpbench-site}
if ls "$here"/wheels/*.whl >/dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$here"/wheels/*.whl || return 1
fi
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 DPBENCH_DATA=$here/data DPBENCH_MODELS=$here/models
"""


def bundle(
    tier: str, out: Path, tables: list[str] | None, have: Iterable[str], python: str, machine: str, half: bool
) -> list[str]:
    """Fill `out` for a tier; return a line on each thing that is in it.

    Args:
        have: distributions that the machine already has; neither they nor what only they need is fetched.
        python: the machine's version of Python, such as 3.12; machine: x86_64 or aarch64.
        half: store weights in fp16, half the size. The sha256 of the weights shows this in the runs' names and records.

    Raises:
        DpbenchError: `out` contains something else, there is no wheel of a package, or a file is damaged.
    """
    if out.exists() and not (out / "activate.sh").exists() and any(out.iterdir()):
        raise DpbenchError(f"{out} is not empty and not a bundle", "name another folder")
    shutil.rmtree(out, ignore_errors=True)
    for name in ("wheels", "data", "models"):
        (out / name).mkdir(parents=True)
    selected = study_at(tier, tables, "bundle")
    sources = {key: source for run in selected.runs.values() for key, source in run.sources.items()}
    lines = [_copy(key, source, out, half) for key, source in sorted(sources.items())]
    lines += _wheels(needed(PACKAGES, have, python), out / "wheels", python, machine)
    (out / "activate.sh").write_text(ACTIVATE, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return [*lines, f"{size / 2**20:.0f} MiB in {out}; on that machine: source {out.name}/activate.sh"]


def needed(names: Iterable[str], have: Iterable[str], python: str) -> dict[str, str]:
    """Return distribution -> version installed here, for `names` and what they require on the machine, without `have`.

    Raises:
        DpbenchError: one is not installed here, so that its version is not known.
    """
    present = {canonicalize_name(name) for name in have}
    markers = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    try:
        return packages.needed(names, present.__contains__, markers)
    except PackageNotFoundError as error:
        raise DpbenchError(f"{error.name} is not installed here", f"run `make install`, or add --have {error.name}") from error


def _copy(key: str, source: Source, out: Path, half: bool) -> str:
    kind, _, name = key.partition(":")
    plugin = plugins.get(kind, name)
    if source.kind in ("embedded", "scratch"):
        return f"{key}: nothing to take along ({source.says})"
    folder = out / ("data" if kind == "dataset" else "models") / plugin.extra["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "dataset":
        for split, file in plugin.extra["files"].items():
            shutil.copyfile(datasets.path(name, split, source), folder / file)
        return f"{key}: {source.says}"
    for file in FILES:
        shutil.copyfile(file_of(plugin, source, file), folder / file)
    if half:
        _halve(folder / WEIGHTS)
    return f"{key}: {source.says}{', in fp16' if half else ''}"


def _halve(weights: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {name: t.to(torch.float16) if t.dtype == torch.float32 else t for name, t in load_file(weights).items()}
    save_file(tensors, weights)


def _wheels(versions: dict[str, str], out: Path, python: str, machine: str) -> list[str]:
    """Download each wheel by itself, so that the error names the first that cannot be downloaded."""
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(out)]
    words += ["--python-version", python, "--implementation", "cp"]
    words += [word for minor in GLIBC for word in ("--platform", f"manylinux_2_{minor}_{machine}")]
    words += ["--platform", f"manylinux2014_{machine}", "--platform", f"manylinux1_{machine}"]
    lines = []
    for name, version in sorted(versions.items()):
        pin = f"{name}=={version}"
        done = subprocess.run([*words, pin], capture_output=True, text=True, check=False)
        if done.returncode and not _build_wheel(pin, out):
            why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise DpbenchError(f"no wheel of {name} {version} for Python {python} on {machine}: {why}", f"add --have {name}")
        lines.append(f"{name} {version}")
    return lines


def _build_wheel(pin: str, out: Path) -> bool:
    """Build a wheel of a package that is published as source alone; return whether it is one for every machine."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", scratch, pin]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        wheels = [path for path in Path(scratch).glob("*-none-any.whl") if done.returncode == 0]
        for path in wheels:
            shutil.move(path, out / path.name)
    return bool(wheels)

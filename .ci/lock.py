#!/usr/bin/env python3
"""Write the three files that pin packages, from what is installed in the running environment.

requirements.lock holds everything dpbench needs, directly or not; environment.yml and workflow/envs/dpbench.yaml hold
the direct dependencies at the same versions.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dpbench.cli.packages import needed

ROOT = Path(__file__).resolve().parent.parent
MARKERS = {"triton": 'platform_system == "Linux" and platform_machine == "x86_64"'}
BUILD = ["setuptools"]  # the package itself is then installed without an isolated build
ACCELERATOR = ("nvidia-", "cuda-", "torch-cuda")  # whatever the index' torch brings along is left to that torch

LOCK = """\
# Every package of one working environment (Python 3.11), made by `make lock`. The package itself comes on top:
#   pip install -r requirements.lock && pip install --no-deps --no-build-isolation -e .
# torch has no local version here: the index decides whether it is built for a GPU.
"""
CONDA = """\
# Made by `make lock` from the same environment as requirements.lock; torch and its friends come from the package index.
{use}name: {name}
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def direct() -> list[str]:
    """Names in pyproject.toml, development ones included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    given = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    return [Requirement(r).name for r in given]


def main() -> None:
    try:
        versions = needed(direct() + BUILD + list(MARKERS), lambda name: name.startswith(ACCELERATOR))
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: run `make install` first") from error
    lines = [
        f"{name}=={version}" + (f" ; {MARKERS[name]}" if name in MARKERS else "") for name, version in sorted(versions.items())
    ]
    (ROOT / "requirements.lock").write_text(LOCK + "\n".join(lines) + "\n", encoding="utf-8")
    pins = "".join(f"      - {name}=={versions[canonicalize_name(name)]}\n" for name in sorted(direct(), key=str.lower))
    use = "#   conda env create -f environment.yml && conda activate dpbench && pip install --no-deps -e .\n"
    (ROOT / "environment.yml").write_text(CONDA.format(use=use, name="dpbench") + pins, encoding="utf-8")
    use = "# What the rules run in, for `--sdm conda` users and the workflow catalogue; environment.yml has the same pins.\n"
    (ROOT / "workflow/envs/dpbench.yaml").write_text(CONDA.format(use=use, name="dpbench") + pins, encoding="utf-8")


if __name__ == "__main__":
    main()

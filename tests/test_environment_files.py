"""pyproject.toml, requirements.lock, environment.yml and the rules' environment say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dpbench

ROOT = Path(__file__).resolve().parent.parent
CONDA = ["environment.yml", "workflow/envs/dpbench.yaml"]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def asked() -> dict[str, Requirement]:
    """Everything pyproject.toml asks for, development included."""
    extras = [r for extra in project()["optional-dependencies"].values() for r in extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, project()["dependencies"] + extras)}


def pins(lines: list[str]) -> dict[str, str]:
    """Package -> the one version it is pinned at."""
    versions: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        name, (exact,) = canonicalize_name(requirement.name), requirement.specifier
        assert name not in versions, f"{name} stands twice"
        assert (exact.operator, requirement.url) == ("==", None), f"{requirement} is not a pin"
        versions[name] = exact.version
    return versions


def lock() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return pins([line for line in text.splitlines() if line and not line.startswith("#")])


def conda(name: str) -> dict[str, str]:
    (section,) = [d for d in yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["dependencies"] if isinstance(d, dict)]
    return pins(section["pip"])


@pytest.mark.parametrize("name", sorted(asked()))
def test_every_dependency_is_locked_at_an_allowed_version(name: str) -> None:
    requirement, locked = asked()[name], lock()
    assert name in locked, f"{name} is not in requirements.lock: make lock"
    assert requirement.specifier.contains(locked[name], prereleases=True)


@pytest.mark.parametrize("name", CONDA)
def test_conda_files_pin_the_direct_dependencies_as_locked(name: str) -> None:
    locked = lock()
    assert conda(name) == {package: locked[package] for package in asked()}


@pytest.mark.parametrize("name", CONDA)
def test_conda_files_use_a_python_that_is_supported(name: str) -> None:
    values = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert values["name"] == "dpbench"
    (python,) = [d for d in values["dependencies"] if isinstance(d, str) and d.startswith("python=")]
    assert Requirement(f"python{project()['requires-python']}").specifier.contains(python.split("=")[1])


def test_the_lock_can_build_the_package_itself() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    locked = lock()
    for requirement in map(Requirement, build):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_the_lock_names_no_accelerator_build_and_no_place() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not [name for name in lock() if name.startswith(("nvidia-", "cuda-"))]
    assert "+cpu" not in text
    assert not re.search(r"https?://|file:|^-", text, flags=re.MULTILINE)


def test_citation_has_the_package_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == dpbench.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)

"""Help authors of plug-ins: write a commented template to start from, and run the contract tests on their plug-in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_text, write_atomic
from dpbench.paths import PACKAGE

TEMPLATES = PACKAGE / "cli" / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LARGEST = 1 << 20
_TESTS = (
    "contract",
    "methods/engines/test_parity.py",
    "methods/engines/test_sensitivity.py",
    "privacy/clipping/test_discovered.py",
    "methods/zeroth/test_discovered_zeroth.py",
)
"""Tests that find plug-ins by discovery. Only the first are about datasets and models."""
_KINDS = {"method": "engine", "clipping": "function", "dataset": "dataset", "task": "job"}


def kinds() -> list[str]:
    """Return the kinds of template."""
    return sorted(path.stem for path in TEMPLATES.iterdir() if path.suffix in {".py", ".yaml"})


def write_template(kind: str, name: str, folder: Path) -> Path:
    """Write a commented template to start from; return its file.

    Raises:
        DpbenchError: an unknown kind, an invalid name, or a plug-in or file of that name exists already.
    """
    if kind not in kinds():
        raise unknown("template", kind, kinds())
    if _NAME.fullmatch(name) is None:
        raise DpbenchError(f"{name!r} is not a valid name of a plug-in", "use lower-case letters, digits and underscores")
    template = next(path for path in TEMPLATES.iterdir() if path.stem == kind)
    path = folder / f"{name}{template.suffix}"
    if path.exists():
        raise DpbenchError(f"{path} exists already", "choose another name, or delete it")
    if kind in _KINDS and name in plugins.discover(_KINDS[kind]):
        raise DpbenchError(f"a {kind} is called {name} already: {plugins.get(_KINDS[kind], name).path}", "choose another name")
    write_atomic(path, read_text(template, _LARGEST, "install dpbench again").replace("NAME", name))
    return path


def test_plugin(name: str) -> int:
    """Run the contract tests on one plug-in, of the package or of another folder; return pytest's exit code.

    Raises:
        DpbenchError: no plug-in has that name; the tests or pytest are not installed.
    """
    by_key = {plugin.key: plugin for kind in plugins.FOLDERS for plugin in plugins.discover(kind).values()}
    keys = [key for key, plugin in by_key.items() if plugin.name == name]
    if not keys:
        raise unknown("plug-in", name, {plugin.name for plugin in by_key.values()})
    tests = PACKAGE.parent / "tests"
    if not tests.is_dir():
        raise DpbenchError("the tests are not installed", "run this from a clone of dpbench (`make install`)")
    if subprocess.run([sys.executable, "-c", "import pytest"], check=False, stderr=subprocess.DEVNULL).returncode:
        raise DpbenchError("pytest is not installed", "pip install pytest hypothesis")
    for key in keys:
        print(f"{key}: {by_key[key].path}", flush=True)
    words = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-k", name]
    needed = _TESTS if any(by_key[key].kind not in ("dataset", "model") for key in keys) else _TESTS[:1]
    environment = dict(os.environ)
    if folder := environment.get("DPBENCH_DATA"):
        # The tests unset DPBENCH_DATA, so that none of them depends on a machine's data: its value has another name for them.
        environment["DPBENCH_TEST_DATA"] = os.path.abspath(folder)
    return subprocess.run(
        [*words, *(str(tests / test) for test in needed)], cwd=tests.parent, env=environment, check=False
    ).returncode

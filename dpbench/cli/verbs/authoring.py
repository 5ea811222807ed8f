"""Verbs for authors: list and lock plug-ins, start one from a template, run the contract tests on it, write the schemas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from typer import Argument, Option

from dpbench import paths, plugins
from dpbench.cli.app import print_rows, verb
from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_text, write_atomic

TOPIC = "Authors of plug-ins and tables"
TEMPLATES = paths.PACKAGE / "cli" / "templates"
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
"""Template -> kind of the plug-in that it is for; a table is no plug-in."""


@verb(TOPIC, "plugins", 'plugins --lock engine:ghost --why "one copy less; no number changed"', name="plugins")
def list_plugins(
    lock: Annotated[
        list[str] | None,
        Option(metavar="[KIND:NAME ...]", help="Write these into plugins.lock; without names, all that changed."),
    ] = None,
    why: Annotated[
        str, Option(metavar="TEXT", help="The reason why numbers stay, where content changed and the version did not.")
    ] = "",
) -> int:
    """List all plug-ins with their part in the name of a run, or lock those that were edited."""
    from dpbench.plugins import identity

    if lock is not None:
        for key in identity.lock(filter(None, lock), why):
            typer.echo(f"locked {key}")
        return 0
    stale = identity.stale()
    rows = []
    for plugin in plugins.discover_all():
        where = f"{plugin.path}, in no lock: its content is part of the name of its runs" if plugin.outside else ""
        rows.append((plugin.key, identity.identity(plugin), stale.get(plugin.key, where)))
    rows += [(key, "", remark) for key, remark in stale.items() if key.startswith("core:")]
    print_rows([("plug-in", 32), ("version", 16), ("remark", 0)], rows)
    return 1 if stale else 0


@verb(TOPIC, "new method my_engine --out my_plugins", "new table my_table")
def new(
    kind: Annotated[str, Argument(metavar="KIND", help="clipping, dataset, method, table or task.")],
    name: Annotated[str, Argument(metavar="NAME", help="Name of the plug-in or table.")],
    out: Annotated[Path, Option(metavar="DIR", help="Folder to write into.")] = Path(),
) -> None:
    """Write a commented template of a plug-in or a table."""
    path = write_template(kind, name, out)
    typer.echo(f"{path}: edit it; `python -m dpbench --plugins {path.parent} plugins` lists it")


def write_template(kind: str, name: str, folder: Path) -> Path:
    """Write a commented template to start from; return its file.

    Raises:
        DpbenchError: an unknown kind, an invalid name, or a plug-in or file of that name exists already.
    """
    templates = {path.stem: path for path in TEMPLATES.iterdir() if path.suffix in {".py", ".yaml"}}
    if kind not in templates:
        raise unknown("template", kind, templates)
    if _NAME.fullmatch(name) is None:
        raise DpbenchError(f"{name!r} is not a valid name of a plug-in", "use lower-case letters, digits and underscores")
    path = folder / f"{name}{templates[kind].suffix}"
    if path.exists():
        raise DpbenchError(f"{path} exists already", "choose another name, or delete it")
    if kind in _KINDS and name in plugins.discover(_KINDS[kind]):
        raise DpbenchError(f"a {kind} is called {name} already: {plugins.get(_KINDS[kind], name).path}", "choose another name")
    write_atomic(path, read_text(templates[kind], _LARGEST, "install dpbench again").replace("NAME", name))
    return path


@verb(TOPIC, "test-plugin my_engine", name="test-plugin")
def run_contract_tests(name: Annotated[str, Argument(metavar="NAME", help="Name of the plug-in.")]) -> int:
    """Run the contract tests on one plug-in, of the package or of another folder."""
    every = plugins.discover_all()
    named = [plugin for plugin in every if plugin.name == name]
    if not named:
        raise unknown("plug-in", name, {plugin.name for plugin in every})
    tests = paths.PACKAGE.parent / "tests"
    if not tests.is_dir():
        raise DpbenchError("the tests are not installed", "run this from a clone of dpbench (`make install`)")
    if subprocess.run([sys.executable, "-c", "import pytest"], check=False, stderr=subprocess.DEVNULL).returncode:
        raise DpbenchError("pytest is not installed", "pip install pytest hypothesis")
    for plugin in named:
        print(f"{plugin.key}: {plugin.path}", flush=True)
        if not plugin.is_card:
            plugin.load()  # a module without what its kind needs is one error, not hundreds of failed tests
    words = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-k", name]
    needed = _TESTS if any(plugin.kind not in ("dataset", "model") for plugin in named) else _TESTS[:1]
    environment = dict(os.environ)
    if folder := environment.get("DPBENCH_DATA"):
        # The tests unset DPBENCH_DATA, so that none of them depends on a machine's data: its value has another name for them.
        environment["DPBENCH_TEST_DATA"] = os.path.abspath(folder)
    return subprocess.run(
        [*words, *(str(tests / test) for test in needed)], cwd=tests.parent, env=environment, check=False
    ).returncode


@verb(TOPIC, "schema", "schema --out schemas")
def schema(
    out: Annotated[Path | None, Option(metavar="DIR", help="Folder to write into, by default workflow/schemas.")] = None,
) -> None:
    """Write the JSON schemas of config, tables and records."""
    for name, text in schemas().items():
        write_atomic((out or paths.root() / "workflow" / "schemas") / name, text)


def schemas() -> dict[str, str]:
    """Return file name -> text of the schema of each file that people write or read; pydantic derives them from the models."""
    from dpbench.records.schema import Record
    from dpbench.spec.config import Config
    from dpbench.spec.models import TableSpec

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    models: dict[str, type[BaseModel]] = {"config": Config, "table": TableSpec, "record": Record}
    return {f"{n}.schema.json": json.dumps(dialect | m.model_json_schema(), indent=2) + "\n" for n, m in models.items()}

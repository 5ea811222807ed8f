"""Discovery of plug-ins: one file each, found by a literal `PLUGIN = {...}`, read without importing it.

A declaration is read from the syntax tree, so that naming runs (which needs each plug-in's version) never imports
torch. `kind`, `name`, `version` and `summary` are required; a plug-in may declare more.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from dpbench.errors import DpbenchError, unknown
from dpbench.paths import PACKAGE

FOLDERS = {
    "job": ("jobs",),
    "engine": ("engines", "engines/adapters"),
    # What a paper's published code does, faults included. A kind of its own: nothing that offers or trusts engines sees them.
    "published_engine": ("engines/published",),
    "function": ("clipping",),
    "scope": ("clipping",),
    "threshold": ("clipping",),
    "zeroth": ("zeroth",),
    "published_zeroth": ("zeroth/published",),
    "dataset": ("data",),
    "model": ("models",),
}


@dataclass(frozen=True)
class Plugin:
    """What a plug-in says of itself.

    name: how tables and configs call it; version: raised by a fix that changes numbers; module: where it lives.
    """

    kind: str
    name: str
    version: int
    summary: str
    module: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """Why a peer's adapter cannot run here: its `package` is not installed, and how to `get` it. None where it can."""
        package = self.extra.get("package")
        if not isinstance(package, str) or importlib.util.find_spec(package) is not None:
            return None
        return f"{package} is not installed ({self.extra['get']})"

    def load(self) -> ModuleType:
        """Import the module (this is where torch comes in)."""
        return importlib.import_module(self.module)


def _declaration(path: Path) -> dict[str, Any] | None:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PLUGIN" for t in node.targets):
            try:
                return dict(ast.literal_eval(node.value))
            except ValueError as error:
                raise DpbenchError(f"{path}: PLUGIN is not a literal", "write it with plain values only") from error
    return None


def _read(path: Path) -> Plugin | None:
    found = _declaration(path)
    if found is None:
        return None
    relative = path.relative_to(PACKAGE).with_suffix("")
    missing = {"kind", "name", "version", "summary"} - set(found)
    if missing:
        raise DpbenchError(f"{path}: PLUGIN lacks {', '.join(sorted(missing))}", "see dpbench/plugins.py")
    extra = {k: v for k, v in found.items() if k not in ("kind", "name", "version", "summary")}
    module = ".".join(("dpbench", *relative.parts))
    return Plugin(found["kind"], found["name"], int(found["version"]), found["summary"], module, extra)


@cache
def _folder(folder: str) -> tuple[Plugin, ...]:
    found = (_read(path) for path in sorted((PACKAGE / folder).glob("*.py")))
    return tuple(p for p in found if p is not None)


@cache
def discover(kind: str) -> dict[str, Plugin]:
    """All plug-ins of a kind, by name."""
    found: dict[str, Plugin] = {}
    for folder in FOLDERS[kind]:
        for plugin in _folder(folder):
            if plugin.kind != kind:
                continue
            if plugin.name in found:
                raise DpbenchError(f"two {kind}s are called {plugin.name!r}: {found[plugin.name].module}, {plugin.module}")
            found[plugin.name] = plugin
    return found


def get(kind: str, name: str, where: str = "") -> Plugin:
    """The plug-in called `name`.

    Raises:
        DpbenchError: no such plug-in; names the nearest.
    """
    found = discover(kind)
    if name not in found:
        raise unknown(kind, name, found, where)
    return found[name]

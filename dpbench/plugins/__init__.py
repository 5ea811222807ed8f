"""Discover plug-ins. A plug-in is one Python file with a literal `PLUGIN = {...}`, or, for a dataset or model, one YAML card.

A declaration is read from the syntax tree, without importing the file, so that naming runs (which needs each plug-in's version)
never imports torch. `kind`, `name`, `version` and `summary` are required; a plug-in may declare more. A card has the same keys
as a `PLUGIN`, is checked by `dpbench.plugins.cards`, and has no code.

Plug-ins are every `*.py` with a PLUGIN and every card `*.yaml` in the package, in the folders that `--plugins` or the variable
DPBENCH_PLUGINS names, as PATH names folders, and in installed packages whose entry point of the group `dpbench.plugins` names a
folder of theirs, such as `mine = "my_package.plugins"`. Outside the package a Python file is a separate module: it can import
installed packages, but no file beside it. `dpbench.plugins.identity` decides which part of a plug-in enters a run's name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_yaml
from dpbench.paths import PACKAGE
from dpbench.plugins import cards

VARIABLE = "DPBENCH_PLUGINS"
ENTRY_POINTS = "dpbench.plugins"
FOLDERS = {
    "job": ("jobs",),
    "engine": ("methods/engines", "methods/engines/adapters"),
    # A paper's published code, errors included. This is a separate kind, so that nothing that lists or trusts engines uses them.
    "published_engine": ("methods/published",),
    "function": ("privacy/clipping",),
    "scope": ("privacy/clipping",),
    "threshold": ("privacy/clipping",),
    "zeroth": ("methods/zeroth",),
    "published_zeroth": ("methods/published",),
    "dataset": ("data/cards",),
    "model": ("models", "models/cards"),
}
_REQUIRED = {"kind": str, "name": str, "version": int, "summary": str}
_DECLARES = {"engine": ("private", "scopes"), "published_engine": ("scopes",), "zeroth": ("private",)}
"""What plug-ins of a kind declare in addition."""
_DEFINES = {
    "job": ("Settings", "uses", "check", "run"),
    "engine": ("Engine",),
    "published_engine": ("Engine",),
    "function": ("factor",),
    "scope": ("groups",),
}
"""The names that a module of a kind must define."""


@dataclass(frozen=True)
class Plugin:
    """The declaration of a plug-in.

    name: its name in tables and configs; version: raised by a fix that changes numbers; module: the name it is imported by;
    path: its file; extra: the other keys of its declaration.
    """

    kind: str
    name: str
    version: int
    summary: str
    module: str
    path: Path
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`kind:name`, as in the `versions` of a run's config."""
        return f"{self.kind}:{self.name}"

    @property
    def outside(self) -> bool:
        """Whether its file is outside the package."""
        return not self.module.startswith("dpbench.")

    @property
    def missing(self) -> str | None:
        """Why an adapter cannot run here: its `package` is not installed, and how to `get` it. None if it can run."""
        package = self.extra.get("package")
        if not isinstance(package, str) or importlib.util.find_spec(package) is not None:
            return None
        return f"{package} is not installed ({self.extra['get']})"

    @property
    def is_card(self) -> bool:
        """Whether it is declared by a YAML card, so that it has no code."""
        return self.path.suffix == ".yaml"

    def function(self, name: str) -> Callable[..., Any] | None:
        """Return a function that its module defines; None where the module does not, or where it is a card."""
        return None if self.is_card else getattr(self.load(), name, None)

    def load(self) -> ModuleType:
        """Import the module, and with it torch.

        Raises:
            DpbenchError: it is a card; a file outside the package cannot be imported, or lacks a name that its kind must define.
        """
        if self.is_card:
            raise DpbenchError(f"{self.path}: a card has no code", f"write a {self.kind} with code as a Python plug-in")
        if not self.outside:
            return importlib.import_module(self.module)
        module = _load_outside(self.path, self.module)
        for name in _DEFINES.get(self.kind, ()):
            if not hasattr(module, name):
                raise DpbenchError(f"{self.path}: defines no {name}", f"a {self.kind} has {', '.join(_DEFINES[self.kind])}")
        return module


def folders() -> list[Path]:
    """Return the folders outside the package: those that DPBENCH_PLUGINS names, in its order, then those of entry points.

    Raises:
        DpbenchError: one is not a folder.
    """
    value = os.environ.get(VARIABLE) or ""
    paths = [Path(name).expanduser().resolve() for name in value.split(os.pathsep) if name]
    for path in paths:
        if not path.is_dir():
            raise DpbenchError(f"{VARIABLE}: {path} is not a folder", f"create it, or remove it from {VARIABLE}")
    return list(dict.fromkeys([*paths, *_installed_folders()]))


def add_folder(folder: str | Path) -> None:
    """Look for plug-ins in one more folder, in this process and in those that it starts.

    Raises:
        DpbenchError: `folder` is not a folder.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise DpbenchError(f"plugins: {path} is not a folder", "create it, or name another one")
    names = (os.environ.get(VARIABLE) or "").split(os.pathsep)
    if str(path) not in names:
        os.environ[VARIABLE] = os.pathsep.join([*(name for name in names if name), str(path)])


@cache
def _installed_folders() -> tuple[Path, ...]:
    """Return the folders that installed packages name by an entry point, without importing the packages.

    Raises:
        DpbenchError: an entry point does not name a folder of its package.
    """
    plugin_folders = []
    for point in entry_points(group=ENTRY_POINTS):
        top, *inner = point.module.split(".")
        spec = importlib.util.find_spec(top)
        places = spec.submodule_search_locations if spec is not None else None
        path = Path(next(iter(places), "")).joinpath(*inner) if places else Path(top)
        if not path.is_dir():
            raise DpbenchError(
                f"entry point {point.name} of {ENTRY_POINTS}: {point.value} is no folder of plug-ins", "name a package with them"
            )
        plugin_folders.append(path)
    return tuple(plugin_folders)


def discover(kind: str) -> dict[str, Plugin]:
    """Return all plug-ins of a kind, by name; those of the package first.

    Raises:
        DpbenchError: DPBENCH_PLUGINS names a path that is not a folder, a declaration is invalid, or two plug-ins have one name.
    """
    return _discovered(kind, tuple(folders()))


def discover_all() -> list[Plugin]:
    """Return the plug-ins of every kind. Raises as `discover`."""
    return [plugin for kind in FOLDERS for plugin in discover(kind).values()]


def get(kind: str, name: str, where: str = "") -> Plugin:
    """Return the plug-in called `name`.

    Raises:
        DpbenchError: no such plug-in; names the nearest.
    """
    plugins = discover(kind)
    if name not in plugins:
        raise unknown(kind, name, plugins, where)
    return plugins[name]


@cache
def _discovered(kind: str, outside: tuple[Path, ...]) -> dict[str, Plugin]:
    by_name: dict[str, Plugin] = {}
    for folder in (*(PACKAGE / name for name in FOLDERS[kind]), *outside):
        for plugin in _folder(folder):
            if plugin.kind != kind:
                continue
            if plugin.name in by_name:
                raise DpbenchError(
                    f"two {kind}s are called {plugin.name!r}: {by_name[plugin.name].path}, {plugin.path}", "rename one of them"
                )
            by_name[plugin.name] = plugin
    return by_name


@cache
def _folder(folder: Path) -> tuple[Plugin, ...]:
    plugins = (_read(path) for path in (*sorted(folder.glob("*.py")), *sorted(folder.glob("*.yaml"))))
    return tuple(plugin for plugin in plugins if plugin is not None)


def _read(path: Path) -> Plugin | None:
    is_card = path.suffix == ".yaml"
    declared = _card(path) if is_card else _declaration(path)
    if declared is None:
        return None
    name = "the card" if is_card else "PLUGIN"
    for key, kind in _REQUIRED.items():
        if key not in declared:
            raise DpbenchError(f"{path}: {name} lacks {key}", "it needs kind, name, version and summary")
        if not isinstance(declared[key], kind) or isinstance(declared[key], bool) or not declared[key]:
            raise DpbenchError(
                f"{path}: {key} of {name} is {declared[key]!r}", f"give {'a text' if kind is str else 'a number above 0'}"
            )
    if declared["kind"] not in FOLDERS:
        raise unknown("kind of plug-in", declared["kind"], FOLDERS, str(path))
    if declared["version"] < 1:
        raise DpbenchError(f"{path}: version of {name} is {declared['version']}", "begin with 1")
    if is_card:
        cards.check(declared, path)
    for key in _DECLARES.get(declared["kind"], ()):
        if key not in declared:
            raise DpbenchError(f"{path}: PLUGIN lacks {key}", f"look at another {declared['kind']} of dpbench")
    return Plugin(
        **{key: declared[key] for key in _REQUIRED},
        module=_module_name(path),
        path=path,
        extra={key: value for key, value in declared.items() if key not in _REQUIRED},
    )


def _card(path: Path) -> dict[str, Any] | None:
    """Return the content of a card; None of another YAML file, such as a table: it has at most one of the required keys."""
    values = read_yaml(path)
    if not isinstance(values, dict) or len(_REQUIRED.keys() & values.keys()) < 2:
        return None
    return values


def _declaration(path: Path) -> dict[str, Any] | None:
    for node in syntax_tree(path).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "PLUGIN" for t in node.targets):
            try:
                return dict(ast.literal_eval(node.value))
            except (ValueError, TypeError) as error:
                raise DpbenchError(f"{path}: PLUGIN is not a literal", "write it with plain values only") from error
    return None


def syntax_tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file.

    Raises:
        DpbenchError: the file cannot be read, or is not Python; names file and line.
    """
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise DpbenchError(f"{path}, line {error.lineno}: {error.msg}", "correct it, or move the file elsewhere") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DpbenchError(f"{path}: cannot be read ({error})", "correct it, or move the file elsewhere") from error


def _module_name(path: Path) -> str:
    if path.is_relative_to(PACKAGE):
        return ".".join(("dpbench", *path.relative_to(PACKAGE).with_suffix("").parts))
    return f"_dpbench_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"


def _load_outside(path: Path, name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module while it is executed
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DpbenchError(f"{path}: cannot be imported ({type(error).__name__}: {error})", "correct the plug-in") from error
    return module

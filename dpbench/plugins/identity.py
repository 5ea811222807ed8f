"""Decide which part of a plug-in enters a run's name: its version, and its content if that is not the locked content.

`plugins.lock` has, for every plug-in of the package, its version and the hash of its content at that version. A plug-in with its
locked content enters a run's config by its version alone. A plug-in that was edited since, or that is not in the lock, such as
any in a folder of DPBENCH_PLUGINS, enters as `version+hash`: its runs get new names, so that an edited method never uses its old
results. Whoever edits a plug-in of the package therefore declares the effect: if numbers change, by raising `version`; if they do
not, by locking the new content with a reason (`python -m dpbench plugins --lock NAME --why "..."`).

The content of a plug-in is its file, Python or a YAML card, without comments, docstrings, `version` and `summary`. It does not
include imported modules: every change of `engines/base.py` would rename the runs. Shared modules are locked by folder, as
`core:methods` and so on. These hashes are in no run's name: a test fails when a shared module has changed and nobody has
declared the effect on numbers. A plug-in outside the package can only import installed packages; they are not in its hash
either.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_yaml, write_atomic
from dpbench.paths import PACKAGE
from dpbench.plugins import Plugin

LOCK = PACKAGE / "plugins" / "plugins.lock"
CORE = (
    *("compression", "data", "distributed", "jobs", "kernels", "measure", "methods", "metrics", "models", "privacy"),
    *("simulate", "tasks", "training"),
)
"""Folders whose shared modules decide numbers."""
_NO_NUMBERS = ("version", "summary")  # keys of a declaration that decide no numbers


@dataclass(frozen=True)
class Locked:
    """One entry of the lock.

    content: hash at this version; why: the reason why numbers did not change, where content changed without a new version.
    file: hash of the file's bytes at that time, "" for a folder. If it is the same, so is the content, which then need not be
    computed: parsing every plug-in takes half a second in each run. If it differs, the content may still be the same.
    """

    version: int
    content: str
    file: str = ""
    why: str = ""


def identity(plugin: Plugin) -> int | str:
    """Return a plug-in as a run's config names it: its version, or `version+content` if its content is not the locked one."""
    return _identity(plugin.key, plugin.version, plugin.path, plugin.outside)


@cache
def _identity(key: str, version: int, path: Path, outside: bool) -> int | str:
    entry = None if outside else locked().get(key)
    if entry is not None and entry.version == version and (entry.file == _file_hash(path) or entry.content == content_of(path)):
        return version
    return f"{version}+{content_of(path)}"


def unlocked(versions: dict[str, Any]) -> list[str]:
    """Return the plug-ins of a run's config whose content was not the locked one: `kind:name version+content`."""
    return [f"{key} {value}" for key, value in versions.items() if not isinstance(value, int)]


@cache
def content_of(path: Path) -> str:
    """Return twelve hex digits over all of a plug-in's file that can decide a number.

    They are the same for every version of Python. A process reads a file once, as it does the declaration. The order of keys
    counts, because it can decide a number: that of the slots of a table is that of their tokens.

    Raises:
        DpbenchError: the file cannot be read, or is neither Python nor YAML.
    """
    if path.suffix == ".yaml":
        values = read_yaml(path)
        content = json.dumps({k: v for k, v in values.items() if k not in _NO_NUMBERS} if isinstance(values, dict) else values)
    else:
        content = ascii(_canonical(_numbers_only(plugins.syntax_tree(path))))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@cache
def locked() -> dict[str, Locked]:
    """Return the entries of `plugins.lock`, by `kind:name` and `core:folder`.

    Raises:
        DpbenchError: the file is missing, or not a lock.
    """
    try:
        entries = json.loads(LOCK.read_text(encoding="utf-8"))
        return {key: Locked(**entry) for key, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DpbenchError(f"{LOCK}: cannot be read ({error})", "install dpbench again, or restore the file from git") from error


def present() -> dict[str, Locked]:
    """Return the entries that a lock of the current package would have, without reasons."""
    packaged = [p for p in plugins.discover_all() if not p.outside]
    entries = {p.key: Locked(p.version, content_of(p.path), _file_hash(p.path)) for p in packaged}
    entries |= {f"core:{folder}": Locked(1, _core(folder)) for folder in CORE}
    return dict(sorted(entries.items()))


def stale() -> dict[str, str]:
    """Return `kind:name` -> what to do, for all that differs from the lock; empty if the lock is up to date."""
    before, now = locked(), present()
    findings = {key: "is locked but not there: lock again" for key in before if key not in now}
    for key, entry in now.items():
        old = before.get(key)
        if old is None:
            findings[key] = "is new: lock it"
        elif entry.version < old.version:
            findings[key] = f"has version {entry.version}, locked is {old.version}: a version is never lowered"
        elif entry.version > old.version:
            findings[key] = f"has version {entry.version}, locked is {old.version}: lock it"
        elif entry.content != old.content:
            remedy = "raise the version of every plug-in whose numbers change" if key.startswith("core:") else "raise its version"
            findings[key] = f"was edited: if numbers change, {remedy}; if they stay, lock it with the reason (--why)"
    return dict(sorted(findings.items()))


def lock(names: Iterable[str] = (), why: str = "") -> list[str]:
    """Write current versions and contents into `plugins.lock`; return the keys that changed.

    Args:
        names: `kind:name` or `core:folder`; if there are none, all that differs from the lock.
        why: the reason why numbers did not change, where content changed and the version did not.

    Raises:
        DpbenchError: an unknown name, a lowered version, or an edited plug-in without a reason.
    """
    before, now, findings = locked(), present(), stale()
    chosen = list(names) or list(findings)
    entries = dict(before)
    for key in chosen:
        if key not in before | now:
            raise unknown("plug-in", key, before | now)
        if key not in now:
            del entries[key]
            continue
        old = before.get(key)
        if old is not None and now[key].version < old.version:
            raise DpbenchError(f"{key} {findings[key]}", "raise it")
        edited = old is not None and now[key].version == old.version and now[key].content != old.content
        if edited and not why.strip():
            raise DpbenchError(f"{key} {findings[key]}", 'python -m dpbench plugins --lock NAME --why "why the numbers stay"')
        if old is None or now[key].version != old.version or edited:
            entries[key] = replace(now[key], why=why.strip() if edited else "")
    write_lock({k: replace(e, file=now[k].file) if k in now and e.content == now[k].content else e for k, e in entries.items()})
    return [key for key in chosen if entries.get(key) != before.get(key)]


def write_lock(entries: dict[str, Locked]) -> None:
    """Write the lock with one plug-in per line, so that a merge of two edits is a merge of two lines."""
    lines = (f"{json.dumps(key)}: {json.dumps(_without_empty(entry))}" for key, entry in sorted(entries.items()))
    write_atomic(LOCK, "{\n" + ",\n".join(lines) + "\n}\n")
    locked.cache_clear()
    _identity.cache_clear()


def _without_empty(entry: Locked) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if value != ""}


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _core(folder: str) -> str:
    """Return the hash of a folder's files that are not plug-ins: the bytes of C files, the content of Python and YAML files."""
    plugin_files = {p.path for p in plugins.discover_all()}
    files = sorted(p for p in (PACKAGE / folder).rglob("*") if p.suffix in {".py", ".yaml", ".c", ".h"} and p not in plugin_files)
    digest = hashlib.sha256()
    for path in files:
        content = content_of(path) if path.suffix in {".py", ".yaml"} else _file_hash(path)
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def _numbers_only(tree: ast.Module) -> ast.Module:
    """Remove docstrings, other lone strings, and the keys of a declaration that decide no numbers; return the tree."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [s for s in statements if not _is_text(s)])
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PLUGIN" and isinstance(node.value, ast.Dict):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            kept = [(k, v) for k, v in pairs if not (isinstance(k, ast.Constant) and k.value in _NO_NUMBERS)]
            node.value.keys, node.value.values = [k for k, _ in kept], [v for _, v in kept]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    )


def _canonical(value: Any) -> Any:
    """Return a syntax tree as nested tuples that, unlike `ast.dump`, are the same for every version of Python.

    Empty fields, some of which are new in a version, are left out, and so is whether a name is read or written: its place tells
    that.
    """
    if isinstance(value, ast.AST):
        fields = ((name, _canonical(v)) for name, v in ast.iter_fields(value) if name not in ("ctx", "kind", "type_comment"))
        return (type(value).__name__, *((name, v) for name, v in fields if v not in (None, ())))
    return tuple(_canonical(v) for v in value) if isinstance(value, list) else value

"""What of a plug-in is part of a run's name: its version, and its content wherever that is not the locked one.

`plugins.lock` holds, for every plug-in of the package, its version and the hash of its content at that version. A plug-in that is
as locked gives a run's config its version alone. One that was edited since, and one that is not in the lock, such as any in a
folder of DPBENCH_PLUGINS, gives `version+hash`: its runs are others than before, so that an edited method never meets its old
results. Whoever edits a plug-in of the package therefore says which it is: numbers change, then `version` is raised; or they
stay, then the new content is locked with a reason (`python -m dpbench plugins --lock NAME --why "..."`).

The content of a plug-in is its own file without comments, docstrings, `version` and `summary`. What it imports is not in it: a
run would lose its name with every change of `engines/base.py`. Shared modules are locked by folder, as `core:engines` and the
like, and these hashes are in no run's name: they make a test fail when a shared module changed and nobody said what that does to
numbers.
A plug-in outside the package may import what is installed only; that is not in its hash either.
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
from dpbench.files import write_atomic
from dpbench.paths import PACKAGE
from dpbench.plugins import Plugin

LOCK = PACKAGE / "plugins" / "plugins.lock"
CORE = (
    *("compression", "data", "distributed", "jobs", "kernels", "measure", "methods", "metrics", "models", "privacy"),
    *("simulate", "tasks", "training"),
)
"""Folders whose shared modules decide numbers."""
_NO_NUMBERS = ("version", "summary")  # of a declaration


@dataclass(frozen=True)
class Locked:
    """content: hash at this version; why: the reason for which numbers stay, where content changed without a new version.

    file: hash of the file's bytes then, "" for a folder. Where it is the same content is, and need not be formed: parsing every
    plug-in takes half a second, and each run does it. Where it is not, nothing follows.
    """

    version: int
    content: str
    file: str = ""
    why: str = ""


def identity(plugin: Plugin) -> int | str:
    """What a run's config says of a plug-in: its version; `version+content` where its content is not the locked one."""
    return _identity(plugin.key, plugin.version, plugin.path, plugin.outside)


@cache
def _identity(key: str, version: int, path: Path, outside: bool) -> int | str:
    entry = None if outside else locked().get(key)
    if entry is not None and entry.version == version and (entry.file == _file_hash(path) or entry.content == content_of(path)):
        return version
    return f"{version}+{content_of(path)}"


def unlocked(versions: dict[str, Any]) -> list[str]:
    """The plug-ins of a run's config that were not as locked: `kind:name version+content`."""
    return [f"{key} {value}" for key, value in versions.items() if not isinstance(value, int)]


@cache
def content_of(path: Path) -> str:
    """Twelve hex digits over all of a plug-in's file that can decide a number; the same for every version of Python, and in a
    process that of its first reading, as the declaration is.

    Raises:
        DpbenchError: the file cannot be read, or is not Python.
    """
    return hashlib.sha256(ascii(_canonical(_numbers_only(plugins.syntax_tree(path)))).encode()).hexdigest()[:12]


@cache
def locked() -> dict[str, Locked]:
    """What `plugins.lock` holds, by `kind:name` and `core:folder`.

    Raises:
        DpbenchError: it is not there, or not a lock.
    """
    try:
        entries = json.loads(LOCK.read_text(encoding="utf-8"))
        return {key: Locked(**entry) for key, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DpbenchError(f"{LOCK}: cannot be read ({error})", "install dpbench again, or restore the file from git") from error


def present() -> dict[str, Locked]:
    """What the lock of the package as it is would hold, without reasons."""
    inside = [p for kind in plugins.FOLDERS for p in plugins.discover(kind).values() if not p.outside]
    entries = {p.key: Locked(p.version, content_of(p.path), _file_hash(p.path)) for p in inside}
    entries |= {f"core:{folder}": Locked(1, _core(folder)) for folder in CORE}
    return dict(sorted(entries.items()))


def stale() -> dict[str, str]:
    """`kind:name` -> what is to be done about it, for all that is not as locked; empty where the lock is up to date."""
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
            raised = "raise the version of every plug-in whose numbers change" if key.startswith("core:") else "raise its version"
            findings[key] = f"was edited: if numbers change, {raised}; if they stay, lock it with the reason (--why)"
    return dict(sorted(findings.items()))


def lock(names: Iterable[str] = (), why: str = "") -> list[str]:
    """Write present versions and contents into `plugins.lock`; returns the keys that changed.

    Args:
        names: `kind:name` or `core:folder`; all that is not as locked if none.
        why: the reason for which numbers stay, where content changed and the version did not.

    Raises:
        DpbenchError: an unknown name, a version that was lowered, an edited plug-in without a reason.
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
    """One plug-in a line, so that a merge of two edits is a merge of two lines."""
    lines = (f"{json.dumps(key)}: {json.dumps(_without_empty(entry))}" for key, entry in sorted(entries.items()))
    write_atomic(LOCK, "{\n" + ",\n".join(lines) + "\n}\n")
    locked.cache_clear()
    _identity.cache_clear()


def _without_empty(entry: Locked) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if value != ""}


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _core(folder: str) -> str:
    """Over all files of a folder that are no plug-in; C as it is, Python as of a plug-in."""
    inside = {p.path for kind in plugins.FOLDERS for p in plugins.discover(kind).values()}
    files = sorted(p for p in (PACKAGE / folder).rglob("*") if p.suffix in {".py", ".c", ".h"} and p not in inside)
    digest = hashlib.sha256()
    for path in files:
        content = content_of(path) if path.suffix == ".py" else _file_hash(path)
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def _numbers_only(tree: ast.Module) -> ast.Module:
    """Without docstrings and other lone texts, and without what a declaration says that decides nothing."""
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
    """A syntax tree as nested tuples, the same for every version of Python, as `ast.dump` is not.

    Empty fields, some of which came with a version, are left out, as is whether a name is read or written: its place says that.
    """
    if isinstance(value, ast.AST):
        fields = ((name, _canonical(v)) for name, v in ast.iter_fields(value) if name not in ("ctx", "kind", "type_comment"))
        return (type(value).__name__, *((name, v) for name, v in fields if v not in (None, ())))
    return tuple(_canonical(v) for v in value) if isinstance(value, list) else value

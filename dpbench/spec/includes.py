"""Insert fragments that several tables share.

`include: NAME` in a mapping adds the keys of `benchmarks/_shared/NAME.yaml`; an item `include: NAME` of a list adds the items of
a fragment that is a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dpbench import paths
from dpbench.errors import DpbenchError, nearest
from dpbench.files import read_yaml

FOLDER = "_shared"
KEY = "include"
METRICS = "metrics"
"""The fragment that says what each metric is."""


def read_table(path: Path) -> tuple[Any, frozenset[Path]]:
    """Return the values of a table's file as `with_includes` and `with_metrics` do, and the files of the fragments it uses.

    Raises:
        DpbenchError: as these, and as `read_yaml`.
    """
    files: set[Path] = set()
    values = with_includes(read_yaml(path), path, files=files)
    return with_metrics(values, path, files), frozenset(files)


def with_includes(values: Any, path: Path, chain: Sequence[str] = (), files: set[Path] | None = None) -> Any:
    """Return the values of a YAML file with its fragments inserted; the keys of a mapping override those that it includes.

    Args:
        path: the file; fragments are looked for in its folder and the one above, then in `benchmarks/_shared`.
        chain: fragments that are being read.
        files: the files of the fragments are added to it.

    Raises:
        DpbenchError: a fragment is missing, includes itself, or is neither a mapping nor a list in a list; names the files.
    """
    files = set() if files is None else files
    if isinstance(values, list):
        return [item for value in values for item in _items(value, path, chain, files)]
    if not isinstance(values, dict):
        return values
    explicit = {key: with_includes(value, path, chain, files) for key, value in values.items() if key != KEY}
    names = values.get(KEY, [])
    merged: dict[Any, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        merged = merge(merged, _fragment(name, path, chain, files))
    return merge(merged, explicit)


def _items(value: Any, path: Path, chain: Sequence[str], files: set[Path]) -> list[Any]:
    """Return one item of a list, or the items of the fragment that it inserts."""
    if isinstance(value, dict) and list(value) == [KEY] and not isinstance(value[KEY], list):
        file, fragment = _read_fragment(value[KEY], path, chain, files)
        return fragment if isinstance(fragment, list) else [_mapping(fragment, file)]
    return [with_includes(value, path, chain, files)]


def with_metrics(values: Any, path: Path, files: set[Path]) -> Any:
    """Return the values of a table with its metrics completed from the fragment `metrics`, where one name has one meaning.

    A table lists the names of its metrics, or maps a name to what differs from the fragment.

    Args:
        files: as in `with_includes`.

    Raises:
        DpbenchError: a metric is in the list and not in the fragment; names the nearest.
    """
    if not isinstance(values, dict) or (file := _file_of(METRICS, path)) is None:
        return values
    known, metrics = _fragment(METRICS, path, [], files), values.get("metrics")
    if isinstance(metrics, list):
        for name in metrics:
            if not isinstance(name, str) or name not in known:
                raise DpbenchError(f"{path}: metrics: {name!r} is not in {file}", nearest(str(name), known))
        metrics = dict.fromkeys(metrics)
    if not isinstance(metrics, dict):
        return values
    completed = {name: merge(known.get(name, {}), {} if changes is None else changes) for name, changes in metrics.items()}
    return values | {"metrics": completed}


def _file_of(name: str, path: Path) -> Path | None:
    places = [folder / FOLDER / f"{name}.yaml" for folder in (path.parent, path.parent.parent, paths.benchmarks())]
    return next((place for place in places if place.is_file()), None)


def _fragment(name: Any, path: Path, chain: Sequence[str], files: set[Path]) -> dict[Any, Any]:
    file, values = _read_fragment(name, path, chain, files)
    return _mapping(values, file)


def _mapping(values: Any, file: Path) -> dict[Any, Any]:
    if not isinstance(values, dict):
        raise DpbenchError(f"{file}: not a mapping of keys", "a fragment holds keys of a table")
    return values


def _read_fragment(name: Any, path: Path, chain: Sequence[str], files: set[Path]) -> tuple[Path, Any]:
    if not isinstance(name, str) or not name.replace("_", "").isalnum():
        raise DpbenchError(
            f"{path}: include {name!r} is not the name of a fragment", f"name a file of {FOLDER} without its ending"
        )
    if name in chain:
        raise DpbenchError(f"{path}: fragments include each other: {' -> '.join([*chain, name])}", "take one of them out")
    if (file := _file_of(name, path)) is None:
        known = sorted(p.stem for p in (paths.benchmarks() / FOLDER).glob("*.yaml"))
        raise DpbenchError(f"{path}: include {name}: there is no such fragment", f"known: {', '.join(known) or 'none'}")
    files.add(file)
    return file, with_includes(_content(file), file, [*chain, name], files)


@cache
def _content(file: Path) -> Any:
    """Return what a fragment holds: many tables include the same one."""
    return read_yaml(file)


def merge(base: dict[Any, Any], over: dict[Any, Any]) -> dict[Any, Any]:
    """Return `base` with the values of `over` in place of its own, mapping by mapping; an explicit null in `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged

"""Insert fragments that several tables share.

`include: NAME` in a mapping adds the keys of `benchmarks/_shared/NAME.yaml`; an item `include: NAME` of a list adds the items of
a fragment that is a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpbench import paths
from dpbench.errors import DpbenchError, nearest
from dpbench.files import read_yaml

FOLDER = "_shared"
KEY = "include"
METRICS = "metrics"
"""The fragment that says what each metric is."""


def with_includes(values: Any, path: Path, chain: Sequence[str] = ()) -> Any:
    """Return the values of a YAML file with its fragments inserted; the keys of a mapping override those that it includes.

    Args:
        path: the file; fragments are looked for in its folder and the one above, then in `benchmarks/_shared`.
        chain: fragments that are being read.

    Raises:
        DpbenchError: a fragment is missing, includes itself, or is neither a mapping nor a list in a list; names the files.
    """
    if isinstance(values, list):
        return [item for value in values for item in _items(value, path, chain)]
    if not isinstance(values, dict):
        return values
    explicit = {key: with_includes(value, path, chain) for key, value in values.items() if key != KEY}
    names = values.get(KEY, [])
    merged: dict[Any, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        merged = merge(merged, _fragment(name, path, chain))
    return merge(merged, explicit)


def _items(value: Any, path: Path, chain: Sequence[str]) -> list[Any]:
    """Return one item of a list, or the items of the fragment that it inserts."""
    if isinstance(value, dict) and list(value) == [KEY] and not isinstance(value[KEY], list):
        file, fragment = _read_fragment(value[KEY], path, chain)
        return fragment if isinstance(fragment, list) else [_mapping(fragment, file)]
    return [with_includes(value, path, chain)]


def with_metrics(values: Any, path: Path) -> Any:
    """Return the values of a table with its metrics completed from the fragment `metrics`, where one name has one meaning.

    A table lists the names of its metrics, or maps a name to what differs from the fragment.

    Raises:
        DpbenchError: a metric is in the list and not in the fragment; names the nearest.
    """
    if not isinstance(values, dict) or (file := _file_of(METRICS, path)) is None:
        return values
    known, metrics = _fragment(METRICS, path, []), values.get("metrics")
    if isinstance(metrics, list):
        for name in metrics:
            if not isinstance(name, str) or name not in known:
                raise DpbenchError(f"{path}: metrics: {name!r} is not in {file}", nearest(str(name), known))
        metrics = dict.fromkeys(metrics)
    if not isinstance(metrics, dict):
        return values
    completed = {name: merge(known.get(name, {}), {} if changes is None else changes) for name, changes in metrics.items()}
    return values | {"metrics": completed}


def fragments_of(path: Path) -> list[Path]:
    """Return the files of the fragments that a table uses, directly or by way of others."""
    files: dict[Path, None] = {}
    names = [METRICS, *_included(read_yaml(path))]
    while names:
        file = _file_of(names.pop(), path)
        if file is not None and file not in files:
            files[file] = None
            names += _included(read_yaml(file))
    return sorted(files)


def _included(values: Any) -> list[str]:
    """Return the names of the fragments that a value includes directly."""
    if isinstance(values, list):
        return [name for value in values for name in _included(value)]
    if not isinstance(values, dict):
        return []
    names = values.get(KEY, [])
    inside = [name for key, value in values.items() if key != KEY for name in _included(value)]
    return [*([names] if isinstance(names, str) else names), *inside]


def _file_of(name: str, path: Path) -> Path | None:
    places = [folder / FOLDER / f"{name}.yaml" for folder in (path.parent, path.parent.parent, paths.benchmarks())]
    return next((place for place in places if place.is_file()), None)


def _fragment(name: Any, path: Path, chain: Sequence[str]) -> dict[Any, Any]:
    file, values = _read_fragment(name, path, chain)
    return _mapping(values, file)


def _mapping(values: Any, file: Path) -> dict[Any, Any]:
    if not isinstance(values, dict):
        raise DpbenchError(f"{file}: not a mapping of keys", "a fragment holds keys of a table")
    return values


def _read_fragment(name: Any, path: Path, chain: Sequence[str]) -> tuple[Path, Any]:
    if not isinstance(name, str) or not name.replace("_", "").isalnum():
        raise DpbenchError(
            f"{path}: include {name!r} is not the name of a fragment", f"name a file of {FOLDER} without its ending"
        )
    if name in chain:
        raise DpbenchError(f"{path}: fragments include each other: {' -> '.join([*chain, name])}", "take one of them out")
    if (file := _file_of(name, path)) is None:
        known = sorted(p.stem for p in (paths.benchmarks() / FOLDER).glob("*.yaml"))
        raise DpbenchError(f"{path}: include {name}: there is no such fragment", f"known: {', '.join(known) or 'none'}")
    return file, with_includes(read_yaml(file), file, [*chain, name])


def merge(base: dict[Any, Any], over: dict[Any, Any]) -> dict[Any, Any]:
    """Return `base` with the values of `over` in place of its own, mapping by mapping; an explicit null in `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged

"""Insert fragments that several tables share: `include: NAME` in a mapping adds the keys of `benchmarks/_shared/NAME.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import read_yaml

FOLDER = "_shared"
KEY = "include"


def with_includes(values: Any, path: Path, chain: Sequence[str] = ()) -> Any:
    """Return the values of a YAML file with its fragments inserted; the keys of a mapping override those that it includes.

    Args:
        path: the file; fragments are looked for in its folder and the one above, then in `benchmarks/_shared`.
        chain: fragments that are being read.

    Raises:
        DpbenchError: a fragment is missing, includes itself, or is not a mapping; names the files.
    """
    if isinstance(values, list):
        return [with_includes(value, path, chain) for value in values]
    if not isinstance(values, dict):
        return values
    explicit = {key: with_includes(value, path, chain) for key, value in values.items() if key != KEY}
    names = values.get(KEY, [])
    merged: dict[Any, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        merged = merge(merged, _fragment(name, path, chain))
    return merge(merged, explicit)


def _fragment(name: Any, path: Path, chain: Sequence[str]) -> dict[Any, Any]:
    if not isinstance(name, str) or not name.replace("_", "").isalnum():
        raise DpbenchError(
            f"{path}: include {name!r} is not the name of a fragment", f"name a file of {FOLDER} without its ending"
        )
    if name in chain:
        raise DpbenchError(f"{path}: fragments include each other: {' -> '.join([*chain, name])}", "take one of them out")
    places = [folder / FOLDER / f"{name}.yaml" for folder in (path.parent, path.parent.parent, paths.benchmarks())]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        known = sorted(p.stem for p in (paths.benchmarks() / FOLDER).glob("*.yaml"))
        raise DpbenchError(f"{path}: include {name}: there is no such fragment", f"known: {', '.join(known) or 'none'}")
    values = with_includes(read_yaml(file), file, [*chain, name])
    if not isinstance(values, dict):
        raise DpbenchError(f"{file}: not a mapping of keys", "a fragment holds keys of a table")
    return values


def merge(base: dict[Any, Any], over: dict[Any, Any]) -> dict[Any, Any]:
    """Return `base` with the values of `over` in place of its own, mapping by mapping; an explicit null in `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged

"""Datasets in a local folder, `DPBENCH_DATA`: one folder a dataset, one Parquet file a split."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable
from pathlib import Path

from dpbench.data import kinds
from dpbench.data.digests import digest
from dpbench.errors import DpbenchError
from dpbench.files import decoded, read_bytes
from dpbench.plugins import Plugin


def root() -> Path | None:
    """The folder of datasets, None where none is set.

    Raises:
        DpbenchError: it is set and does not exist.
    """
    given = os.environ.get("DPBENCH_DATA")
    if not given:
        return None
    return folder_of("DPBENCH_DATA", given, "data_folder")


def folder_of(variable: str, value: str, key: str) -> Path:
    """The folder that an environment variable names.

    Raises:
        DpbenchError: there is none, or it cannot be looked into. Names the variable, and the `key` of the config that sets it.
    """
    reason = "no such folder"
    try:
        folder = Path(value).expanduser()
        if folder.is_dir():
            next(folder.iterdir(), None)
            return folder
    except (OSError, RuntimeError, ValueError) as error:  # no permission, too long a name, no such user
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
    raise DpbenchError(f"{variable}={value}: {reason}", f"correct or unset it (or `{key}` in the config)")


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """`Path.is_file(path)` and its like.

    Raises:
        DpbenchError: the folder above cannot be looked into.
    """
    try:
        return kind(path)
    except OSError as error:
        raise DpbenchError(f"{path}: cannot be read ({error.strerror})", "see that the folder is readable") from error


def why_not(plugin: Plugin) -> str:
    """Empty where the dataset has a local folder, else the reason it has none.

    A copy without a split that the plug-in says it `may_lack` counts as none: such copies are about, and serve for nothing here.
    """
    above = root()
    if above is None:
        return "DPBENCH_DATA is not set"
    folder = above / plugin.extra["folder"]
    if not _is(Path.is_dir, folder):
        return f"{folder} does not exist" if not _is(Path.exists, folder) else f"{folder} is no folder"
    lacking = [s for s in plugin.extra.get("may_lack", ()) if not _is(Path.is_file, folder / plugin.extra["files"][s])]
    return f"{folder} has no {lacking[0]} split" if lacking else ""


def _sums(folder: Path) -> dict[Path, tuple[str, Path]]:
    """File -> (sha256, the list that states it), from `SHA256SUMS` of the dataset's folder and the folder above."""
    found: dict[Path, tuple[str, Path]] = {}
    for listing in (folder.parent / "SHA256SUMS", folder / "SHA256SUMS"):
        if not _is(Path.is_file, listing):
            continue
        text = decoded(read_bytes(listing).removeprefix(codecs.BOM_UTF8), str(listing))  # which some editors write
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            sha, _, name = line.strip().partition(" ")
            if not re.fullmatch("[0-9a-fA-F]{64}", sha) or not name.strip():
                raise DpbenchError(f"{listing}: line {number} is not `sha256  file`", "write it again with sha256sum")
            found[listing.parent / name.strip().removeprefix("*")] = (sha.lower(), listing)
    return found


def files(plugin: Plugin) -> dict[str, str]:
    """File name -> sha256 of every file the plug-in names; call it where `why_not` is empty.

    Raises:
        DpbenchError: a file is missing (half a dataset is a mistake, not a reason to fall back), or differs from SHA256SUMS.
    """
    above = root()
    assert above is not None
    folder = above / plugin.extra["folder"]
    stated, found = _sums(folder), {}
    for split, name in plugin.extra["files"].items():
        path = folder / name
        if not _is(Path.is_file, path):
            raise _no_file(path, f"{plugin.name}, split {split!r}")
        found[name] = digest(path)
        expected, listing = stated.get(path, (found[name], path))
        if found[name] != expected:
            raise DpbenchError(
                f"{path}: sha256 differs from {listing}: expected {expected}, got {found[name]}", "fetch the file again"
            )
    return found


def _no_file(path: Path, what: str) -> DpbenchError:
    """A split's file is not there, or is none."""
    if _is(Path.is_dir, path):
        found, hint = kinds.described(path)
        return DpbenchError(f"{path}: is {found} ({what})", hint)
    if path.is_symlink():
        return DpbenchError(f"{path}: a link to a file that is not there ({what})", "put the file there, or take the link away")
    hint = kinds.instead_of(path) or "complete the folder, or remove it to use another source"
    return DpbenchError(f"{path}: missing ({what}), though its folder is there", hint)


def path_of(plugin: Plugin, name: str, expected: str | None) -> Path:
    """A split's file, unchanged since its source was resolved.

    Args:
        expected: its sha256 at that time.

    Raises:
        DpbenchError: gone, or changed.
    """
    if reason := why_not(plugin):
        raise DpbenchError(f"dataset {plugin.name}: its runs were named with a local folder, but {reason}", "set DPBENCH_DATA")
    above = root()
    assert above is not None
    path = above / plugin.extra["folder"] / name
    if not _is(Path.is_file, path):
        raise _no_file(path, plugin.name)
    got = digest(path)
    if got != expected:
        raise DpbenchError(
            f"{path}: changed since the runs were named: expected sha256 {expected}, got {got}",
            "put the file back, or name the runs again (start the command once more)",
        )
    return path

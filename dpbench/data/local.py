"""Datasets in a local folder, `DPBENCH_DATA`: one folder a dataset, one Parquet file a split."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable
from pathlib import Path

from dpbench.data import file_kinds
from dpbench.data.digests import digest
from dpbench.errors import DpbenchError
from dpbench.files import decoded, read_bytes
from dpbench.plugins import Plugin


def root() -> Path | None:
    """Return the folder of datasets; None where none is set.

    Raises:
        DpbenchError: the folder is set and does not exist.
    """
    folder = os.environ.get("DPBENCH_DATA")
    if not folder:
        return None
    return folder_of("DPBENCH_DATA", folder, "data_folder")


def folder_of(variable: str, value: str, key: str) -> Path:
    """Return the folder that an environment variable names.

    Raises:
        DpbenchError: there is no such folder, or it cannot be read. The error names the variable, and the `key` of the config
            that sets it.
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
    """Return `kind(path)`, where kind is `Path.is_file` or the like.

    Raises:
        DpbenchError: the parent folder cannot be read.
    """
    try:
        return kind(path)
    except OSError as error:
        raise DpbenchError(f"{path}: cannot be read ({error.strerror})", "see that the folder is readable") from error


def why_not(plugin: Plugin) -> str:
    """Return why the dataset has no local folder; empty where it has one.

    A folder without a split of `may_lack` in the plug-in counts as none: such copies exist, and cannot be used here.
    """
    data_folder = root()
    if data_folder is None:
        return "DPBENCH_DATA is not set"
    folder = data_folder / plugin.extra["folder"]
    if not _is(Path.is_dir, folder):
        return f"{folder} does not exist" if not _is(Path.exists, folder) else f"{folder} is no folder"
    lacking = [s for s in plugin.extra.get("may_lack", ()) if not _is(Path.is_file, folder / plugin.extra["files"][s])]
    return f"{folder} has no {lacking[0]} split" if lacking else ""


def _sums(folder: Path) -> dict[Path, tuple[str, Path]]:
    """Return file -> (sha256, the list that states it), from `SHA256SUMS` of the dataset's folder and its parent."""
    sums: dict[Path, tuple[str, Path]] = {}
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
            sums[listing.parent / name.strip().removeprefix("*")] = (sha.lower(), listing)
    return sums


def files(plugin: Plugin) -> dict[str, str]:
    """Return file name -> sha256 of every file that the plug-in names; call it only where `why_not` is empty.

    Raises:
        DpbenchError: a file is missing (half a dataset is a mistake, not a reason to fall back), or differs from SHA256SUMS.
    """
    data_folder = root()
    assert data_folder is not None
    folder = data_folder / plugin.extra["folder"]
    sums, digests = _sums(folder), {}
    for split, name in plugin.extra["files"].items():
        path = folder / name
        if not _is(Path.is_file, path):
            raise _no_file(path, f"{plugin.name}, split {split!r}")
        digests[name] = digest(path)
        expected, listing = sums.get(path, (digests[name], path))
        if digests[name] != expected:
            raise DpbenchError(
                f"{path}: sha256 differs from {listing}: expected {expected}, got {digests[name]}", "fetch the file again"
            )
    return digests


def _no_file(path: Path, what: str) -> DpbenchError:
    """Return the error about the file of a split that is missing or not a file."""
    if _is(Path.is_dir, path):
        kind, hint = file_kinds.described(path)
        return DpbenchError(f"{path}: is {kind} ({what})", hint)
    if path.is_symlink():
        return DpbenchError(f"{path}: a link to a file that is not there ({what})", "put the file there, or take the link away")
    hint = file_kinds.instead_of(path) or "complete the folder, or remove it to use another source"
    return DpbenchError(f"{path}: missing ({what}), though its folder is there", hint)


def path_of(plugin: Plugin, name: str, expected: str | None) -> Path:
    """Return the file of a split, unchanged since its source was resolved.

    Args:
        expected: the sha256 of the file at that time.

    Raises:
        DpbenchError: the file is gone, or has changed.
    """
    if reason := why_not(plugin):
        raise DpbenchError(f"dataset {plugin.name}: its runs were named with a local folder, but {reason}", "set DPBENCH_DATA")
    data_folder = root()
    assert data_folder is not None
    path = data_folder / plugin.extra["folder"] / name
    if not _is(Path.is_file, path):
        raise _no_file(path, plugin.name)
    sha256 = digest(path)
    if sha256 != expected:
        raise DpbenchError(
            f"{path}: changed since the runs were named: expected sha256 {expected}, got {sha256}",
            "put the file back, or name the runs again (start the command once more)",
        )
    return path

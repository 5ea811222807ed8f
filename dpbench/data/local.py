"""Datasets in a local folder, `DPBENCH_DATA`: one folder a dataset, one Parquet file a split."""

from __future__ import annotations

import os
from pathlib import Path

from dpbench.data.digests import digest
from dpbench.errors import DpbenchError
from dpbench.files import read_text
from dpbench.plugins import Plugin


def root() -> Path | None:
    """The folder of datasets, None where none is set.

    Raises:
        DpbenchError: it is set and does not exist.
    """
    given = os.environ.get("DPBENCH_DATA")
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DpbenchError(f"DPBENCH_DATA={given}: no such folder", "correct or unset it (or `data_folder` in the config)")
    return folder


def why_not(plugin: Plugin) -> str:
    """Empty where the dataset has a local folder, else the reason it has none.

    A copy without a split that the plug-in says it `may_lack` counts as none: such copies are about, and serve for nothing here.
    """
    above = root()
    if above is None:
        return "DPBENCH_DATA is not set"
    folder = above / plugin.extra["folder"]
    if not folder.is_dir():
        return f"{folder} does not exist"
    lacking = [s for s in plugin.extra.get("may_lack", ()) if not (folder / plugin.extra["files"][s]).is_file()]
    return f"{folder} has no {lacking[0]} split" if lacking else ""


def _sums(folder: Path) -> dict[Path, tuple[str, Path]]:
    """File -> (sha256, the list that states it), from `SHA256SUMS` of the dataset's folder and the folder above."""
    found: dict[Path, tuple[str, Path]] = {}
    for listing in (folder.parent / "SHA256SUMS", folder / "SHA256SUMS"):
        if not listing.is_file():
            continue
        for number, line in enumerate(read_text(listing).splitlines(), start=1):
            if not line.strip():
                continue
            sha, _, name = line.strip().partition(" ")
            if len(sha) != 64 or not name.strip():
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
        if not path.is_file():
            raise DpbenchError(
                f"{path}: missing ({plugin.name}, split {split!r}), though its folder is there",
                "complete the folder, or remove it to use another source",
            )
        found[name] = digest(path)
        expected, listing = stated.get(path, (found[name], path))
        if found[name] != expected:
            raise DpbenchError(
                f"{path}: sha256 differs from {listing}: expected {expected}, got {found[name]}", "fetch the file again"
            )
    return found


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
    if not path.is_file():
        raise DpbenchError(f"{path}: missing", "complete the folder")
    got = digest(path)
    if got != expected:
        raise DpbenchError(
            f"{path}: changed since the runs were named: expected sha256 {expected}, got {got}",
            "put the file back, or name the runs again (start the command once more)",
        )
    return path

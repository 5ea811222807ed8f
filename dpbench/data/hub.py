"""Files of the Hugging Face hub at pinned revisions: the cache, whether the hub answers (asked once a process), downloads.

A file must have the sha256 that its plug-in states, the one that was noted when it was first fetched at that revision, and the
checksum by which the hub itself names it. A file that differs is removed, so that the next run fetches it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from dpbench import paths
from dpbench.data import cache_tables
from dpbench.data.digests import digest
from dpbench.errors import DpbenchError

PROBE_SECONDS = 3.0
STALLED_SECONDS = 30.0
"""A download that brings no byte for so long has failed; the client's own attempts to connect are shorter."""

SLOWEST = 10_000
"""Bytes a second: a download that falls `STALLED_SECONDS` behind this rate has failed too."""

_AGAIN = "try again, or use a local folder"
_NOTED = "hub.json"
_PIECE = 2**20


def offline() -> bool:
    """Return whether the user forbids the network."""
    from huggingface_hub import constants

    forbidden = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return forbidden or bool(constants.HF_HUB_OFFLINE)


def _ask(url: str, answers: list[bool]) -> None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS) as reply:
            answers.append(reply.status == 200)
    except (OSError, ValueError):
        answers.append(False)


@cache
def _probe(endpoint: str) -> bool:
    answers: list[bool] = []
    # A thread, because no timeout of urllib covers a name look-up that hangs.
    thread = threading.Thread(target=_ask, args=(f"{endpoint}/api/models/FacebookAI/roberta-base", answers), daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers and answers[0])


def answers() -> bool:
    """Return whether the hub can be reached: it is asked once a process, for 3 s at most, and never when offline."""
    if offline():
        return False
    from huggingface_hub import constants

    return _probe(constants.ENDPOINT)


def cached(repo: str, filename: str, revision: str, repo_type: str) -> Path | None:
    """Return the path of a file in the local cache of the hub; None where it is not there.

    Raises:
        DpbenchError: no repository can have that name.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        cached_path = try_to_load_from_cache(repo, filename, revision=revision, repo_type=repo_type)
    except ValueError as error:
        raise DpbenchError(f"hub: {error}", f"correct `hub` of the plug-in that names {repo!r}") from error
    return Path(cached_path) if isinstance(cached_path, str) else None


def why_not(spec: dict[str, Any] | None, filenames: Iterable[str], repo_type: str) -> str:
    """Return why the hub cannot serve the files; empty where it can, from its cache or the network.

    Args:
        spec: `repo` and `revision` of a plug-in's `hub`; None where the dataset has no place on the hub. A revision of None means
            that nobody has pinned one, for the reason in `why`; nothing is taken from such a repository.
    """
    if spec is None:
        return "it has no place on the hub"
    if spec["revision"] is None:
        return f"no revision of {spec['repo']} is pinned: {spec['why']}"
    if all(cached(spec["repo"], f, spec["revision"], repo_type) for f in filenames):
        return ""
    if offline():
        return f"{spec['repo']} is not in the hub's cache and HF_HUB_OFFLINE is set"
    return "" if answers() else f"{spec['repo']} is not in the hub's cache and the hub does not answer"


def fetch(spec: dict[str, Any], filename: str, repo_type: str, sha256: str | None = None) -> Path:
    """Return a complete file at its pinned revision, from the cache or downloaded into it.

    Args:
        spec: `repo` and `revision`; may have `sha256`, file name -> sha256.
        sha256: the digest of the file, where the spec does not state one.

    Raises:
        DpbenchError: the file is not in the cache and cannot be downloaded in time; or its bytes are not those of that revision,
            and it is removed.
    """
    what = f"{spec['repo']}@{spec['revision'][:12]}: {filename}"
    expected = spec.get("sha256", {}).get(filename, sha256)
    path = cached(spec["repo"], filename, spec["revision"], repo_type)
    if path is None:
        if offline():
            raise DpbenchError(f"{what}: not in the hub's cache", "unset HF_HUB_OFFLINE, or take another source")
        path = _downloaded(spec, filename, repo_type, what)
    fault = _fault(path, f"{repo_type}/{spec['repo']}@{spec['revision']}/{filename}", expected)
    if fault:
        _remove(path)
        hint = "it is not kept: start again to fetch it anew; where the same comes again, use a local folder"
        if "first fetched" in fault:
            hint += f"; if the first was the wrong one, take its line out of {paths.cache() / _NOTED}"
        raise DpbenchError(f"{what}: {fault}", hint)
    return path


def _fault(path: Path, key: str, expected: str | None) -> str:
    """Return why a cached file is not the pinned one; empty where it is. Its digest is noted the first time."""
    sha256 = digest(path, persist=True)
    blob_name = path.resolve().name  # the client names its blobs by the hub's checksum
    noted = cache_tables.read(_NOTED).get(key)
    if expected is not None and sha256 != expected:
        return f"its sha256 is {sha256}, and {expected} is known of this revision"
    if noted is not None and sha256 != noted:
        return f"its sha256 is {sha256}, and it was {noted} when this revision was first fetched"
    if re.fullmatch("[0-9a-f]{64}", blob_name) and sha256 != blob_name:
        return f"its sha256 is {sha256}, and the hub says {blob_name}"
    if noted is not None or expected is not None:
        return ""
    if re.fullmatch("[0-9a-f]{40}", blob_name) and path.resolve() != path and _git_blob(path) != blob_name:
        return f"its git checksum differs from the hub's, {blob_name}"
    if fault := _no_such_file(path):
        return fault
    cache_tables.add(_NOTED, {key: sha256})
    return ""


def _git_blob(path: Path) -> str:
    """Return the checksum by which git, and so the hub, names a small file."""
    checksum = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as handle:
        while piece := handle.read(_PIECE):
            checksum.update(piece)
    return checksum.hexdigest()


def _no_such_file(path: Path) -> str:
    """Return why a file without a checksum cannot be of the kind that its name says; empty where it can."""
    if path.suffix != ".parquet":
        return ""
    with path.open("rb") as handle:
        head = handle.read(4)
        handle.seek(max(0, path.stat().st_size - 4))
        tail = handle.read(4)
    return "" if head == tail == b"PAR1" else "it is not a Parquet file"


def _remove(path: Path) -> None:
    """Remove a file from the cache: the name in the snapshot and, where that is a link, the bytes behind it."""
    blob = path.resolve()
    for file in (path, blob):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise DpbenchError(f"{file}: is not the file of its name and cannot be removed", "remove it by hand") from error


def _downloaded(spec: dict[str, Any], filename: str, repo_type: str, what: str) -> Path:
    """Download a file into the cache and return its path.

    Raises:
        DpbenchError: the download failed, or brought nothing for `STALLED_SECONDS`, or is slower than `SLOWEST`.
    """
    from huggingface_hub import constants, hf_hub_download

    meter = _meter()
    done: list[Path] = []
    errors: list[BaseException] = []

    def download() -> None:
        try:
            downloaded = hf_hub_download(spec["repo"], filename, repo_type=repo_type, revision=spec["revision"], tqdm_class=meter)
            done.append(Path(downloaded))
        except BaseException as error:
            errors.append(error)

    blobs = Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{spec['repo'].replace('/', '--')}" / "blobs"
    # A thread, because no timeout of the client covers all of its attempts. One that hangs ends with the process.
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    reason = _watched(thread, lambda: max(meter.bytes, _incomplete(blobs)))
    if done:
        return done[0]
    if errors:  # the client's errors have no common base
        lines = str(errors[0]).strip().splitlines()
        reason = lines[0] if lines else type(errors[0]).__name__
    raise DpbenchError(f"{what}: download failed: {reason}", _AGAIN) from (errors[0] if errors else None)


def _watched(thread: threading.Thread, received: Callable[[], int]) -> str:
    """Wait for a download as long as bytes arrive, and return why it was given up. `received` returns the bytes so far."""
    start = last_progress = time.monotonic()
    most_bytes = 0
    while True:
        thread.join(0.1)
        if not thread.is_alive():
            return "no file came"
        now, count = time.monotonic(), received()
        if count > most_bytes:
            most_bytes, last_progress = count, now
        if now - last_progress > STALLED_SECONDS:
            return f"the hub sent nothing for {STALLED_SECONDS:.0f} s"
        if now - start > STALLED_SECONDS + most_bytes / SLOWEST:
            return f"only {most_bytes:,} bytes came in {now - start:.0f} s"


def _incomplete(blobs: Path) -> int:
    """Return the bytes of unfinished downloads in a folder. Another process may be loading the same file while this one waits."""
    size = 0
    for file in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):  # it has just got its name
            size += file.stat().st_size
    return size


def _meter() -> Any:
    """Return a progress bar class, as the client expects one, that counts the bytes of one download."""
    from huggingface_hub.utils import tqdm

    class Meter(tqdm):
        bytes = 0

        def update(self, n: float | None = 1) -> bool | None:
            Meter.bytes += max(0, int(n or 0))
            shown: bool | None = super().update(n)
            return shown

    return Meter

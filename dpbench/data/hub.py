"""The Hugging Face hub at pinned revisions: what is in the cache, and whether the hub answers (asked once a process)."""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from dpbench.errors import DpbenchError

PROBE_SECONDS = 3.0


def offline() -> bool:
    """Whether the user forbids the network."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return said or bool(constants.HF_HUB_OFFLINE)


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
    """Whether the hub can be reached: one question a process, 3 s at most, none when offline."""
    if offline():
        return False
    from huggingface_hub import constants

    return _probe(constants.ENDPOINT)


def cached(repo: str, filename: str, revision: str, repo_type: str) -> Path | None:
    """Where a file lies in the local cache of the hub, if it does."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename, revision=revision, repo_type=repo_type)
    return Path(found) if isinstance(found, str) else None


def why_not(spec: dict[str, Any] | None, filenames: Iterable[str], repo_type: str) -> str:
    """Empty where the hub can serve the files (from its cache or the network), else the reason it cannot.

    Args:
        spec: `repo` and `revision`, as a plug-in's `hub` states them; None: it has no place on the hub. A revision of None is one
            that nobody has looked at, for the reason in `why`: nothing is taken from there.
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


def fetch(spec: dict[str, Any], filename: str, repo_type: str) -> Path:
    """A file at its pinned revision, from the cache or downloaded into it.

    Raises:
        DpbenchError: it is not in the cache and cannot be downloaded.
    """
    found = cached(spec["repo"], filename, spec["revision"], repo_type)
    if found is not None:
        return found
    what = f"{spec['repo']}@{spec['revision'][:12]}: {filename}"
    if offline():
        raise DpbenchError(f"{what}: not in the hub's cache", "unset HF_HUB_OFFLINE, or take another source")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(spec["repo"], filename, repo_type=repo_type, revision=spec["revision"]))
    except Exception as error:  # the client's errors have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DpbenchError(f"{what}: download failed: {reason}", "try again, or use a local folder") from error

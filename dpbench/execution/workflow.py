"""Prepare a Snakemake before its first job: it waits for its turn in the folder and decides which records it may replace."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dpbench.execution.locking import alone_until_exit

KEEP = "SNAKEMAKE_DPBENCH_KEEP"
"""Environment variable with the option of `dpbench run` that keeps a finished record, or empty."""


def take_turn(folder: Path = Path(".snakemake")) -> None:
    """Wait until no other Snakemake works in this folder with the same GPUs, and make others wait until this one ends.

    Two at once would disturb each other's timings, and the file times by which each decides what to run.

    Raises:
        DpbenchError: the other one is stopped or hangs.
    """
    devices = re.sub(r"[^\w,-]", "_", os.environ.get("CUDA_VISIBLE_DEVICES", ""))[:100]
    alone_until_exit(folder / (f"dpbench-{devices}.lock" if devices else "dpbench.lock"), "this folder")


def keep_records_unless_forced(settings: Any) -> None:
    """Replace a finished record only if --forceall, --forcerun or --force asks for it, whatever the plan says.

    Another process may have written the record since the plan. A Snakemake that is started for one job of a cluster reads the
    decision from its environment.

    Args:
        settings: Snakemake's `workflow.dag_settings`.
    """
    is_forced = settings.forceall or settings.forcerun or settings.forcetargets
    os.environ[KEEP] = "" if is_forced else "--keep"

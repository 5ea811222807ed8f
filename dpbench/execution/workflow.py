"""What a Snakemake does before its first job: it takes its turn in the folder, and says which records may be made again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dpbench.execution.locking import alone_until_exit

KEEP = "SNAKEMAKE_DPBENCH_KEEP"
"""Environment variable: the option of `dpbench run` that keeps a finished record, or nothing."""


def take_turn(folder: Path = Path(".snakemake")) -> None:
    """Wait until no other Snakemake works in this folder with the same GPUs, and keep others out until this one ends.

    Two would disturb each other's timings, and the times of files by which each of them judges.

    Raises:
        DpbenchError: the other one is stopped or hangs.
    """
    devices = re.sub(r"[^\w,-]", "_", os.environ.get("CUDA_VISIBLE_DEVICES", ""))[:100]
    alone_until_exit(folder / (f"dpbench-{devices}.lock" if devices else "dpbench.lock"), "this folder")


def keep_records_unless_forced(settings: Any) -> None:
    """Make a finished record again only where --forceall, --forcerun or --force asked for it, whatever the plan says: another
    process may have made it since. A Snakemake that is started for one job of a cluster finds the answer in its environment.

    Args:
        settings: Snakemake's `workflow.dag_settings`.
    """
    is_forced = settings.forceall or settings.forcerun or settings.forcetargets
    os.environ[KEEP] = "" if is_forced else "--keep"

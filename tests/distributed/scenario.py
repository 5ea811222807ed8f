"""`python scenario.py FOLDER RANK SIZE` joins the group, runs every scenario in turn, and saves what each returns."""

from __future__ import annotations

import datetime
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from dpbench.errors import DpbenchError

MODULES = ("replicas", "stages", "shards")


def refused(call: Callable[[], object]) -> str:
    """What a DpbenchError says; empty where there was none."""
    try:
        call()
    except DpbenchError as error:
        return str(error)
    return ""


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=30),
    )
    results: dict[str, dict[str, object]] = {}
    for module in MODULES:
        results[module] = {}
        for name, scenario in importlib.import_module(f"{module}_scenarios").SCENARIOS.items():
            torch.manual_seed(0)
            results[module][name] = scenario(rank, size)
            dist.barrier()
    torch.save(results, folder / f"result{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

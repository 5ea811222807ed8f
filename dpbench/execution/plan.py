"""The plan of a tier: which cells ask for each run. Written once, by whoever starts the runs, and read by each of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from dpbench.errors import DpbenchError
from dpbench.files import read_json, write_atomic
from dpbench.records.schema import Request
from dpbench.spec.expand import Plan
from dpbench.spec.run_config import RunId
from dpbench.validation import Strict, parse

_AGAIN = "start snakemake again, which writes it"


class PlanFile(Strict):
    """What `results/plans/<tier>.json` holds: run -> the cells that ask for it."""

    requests: dict[RunId, list[Request]] = Field(default_factory=dict)


def requests_of(plans: Iterable[Plan]) -> dict[str, list[Request]]:
    """Return, for each run, the cells of all tables that ask for it; tables whose runs build on it, without labels."""
    requests: dict[str, list[Request]] = defaultdict(list)
    for plan in plans:
        paper, table = plan.spec.paper, plan.spec.table
        for cell in plan.cells:
            key = plan.runs[cell.run].key
            requests[cell.run].append(
                Request(paper=paper, table=table, tier=plan.tier, key=key, labels=cell.labels, select=cell.select)
            )
        in_cells = {cell.run for cell in plan.cells}
        for run in plan.runs.values():
            if run.id not in in_cells:
                requests[run.id].append(Request(paper=paper, table=table, tier=plan.tier, key=run.key))
    return dict(requests)


def write_plan(plans: Iterable[Plan], path: Path) -> None:
    """Write the plan file of some tables' plans.

    Raises:
        DpbenchError: it cannot be written.
    """
    content = PlanFile(requests=requests_of(plans)).model_dump(mode="json")
    write_atomic(path, json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


def read_requests(path: Path, run: str) -> list[Request]:
    """Return the cells that ask for a run, none where the plan does not name it.

    Raises:
        DpbenchError: the file is not there, or no plan.
    """
    values = read_json(path, hint=_AGAIN)
    known = values.get("requests", {}) if isinstance(values, dict) else None
    if not isinstance(known, dict):
        raise DpbenchError(f"{path}: no plan of runs", _AGAIN)
    return parse(PlanFile, {"requests": {run: known.get(run, [])}}, str(path), _AGAIN).requests[run]

"""The plan file of a tier: the cells that ask for each run. Whoever starts the runs writes it once; each run reads it."""

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
    """The content of `results/plans/<tier>.json`: run -> the cells that ask for it."""

    requests: dict[RunId, list[Request]] = Field(default_factory=dict)


def requests_of(plans: Iterable[Plan]) -> dict[str, list[Request]]:
    """Return for each run the cells of all tables that ask for it.

    For a run that is only a parent, the requests are those of the tables whose runs build on it, without labels.
    """
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
    """Write the plan file for the plans of some tables.

    Raises:
        DpbenchError: it cannot be written.
    """
    content = PlanFile(requests=requests_of(plans)).model_dump(mode="json")
    write_atomic(path, json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")


def read_requests(path: Path, run: str) -> list[Request]:
    """Return the cells that ask for a run, none if the plan does not name it.

    Raises:
        DpbenchError: the file is missing, or not a plan.
    """
    values = read_json(path, hint=_AGAIN)
    known = values.get("requests", {}) if isinstance(values, dict) else None
    if not isinstance(known, dict):
        raise DpbenchError(f"{path}: no plan of runs", _AGAIN)
    return parse(PlanFile, {"requests": {run: known.get(run, [])}}, str(path), _AGAIN).requests[run]

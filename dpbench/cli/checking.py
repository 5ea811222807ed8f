"""Prove a tier without running it: every run's model on the meta device, its engine, its data's schema, its budget."""

from __future__ import annotations

from dpbench import plugins
from dpbench.cli.duration import duration, recorded_seconds
from dpbench.errors import DpbenchError
from dpbench.execution import environment
from dpbench.execution.study import study_at
from dpbench.files import canonical_json
from dpbench.plugins.identity import unlocked
from dpbench.spec.expand import Run
from dpbench.validation import parse

FAILED = "FAILED"


def check(tier: str, tables: list[str] | None = None) -> int:
    """Print one line a run; returns the exit code: 0 if all stand, 1 if any does not.

    Raises:
        DpbenchError: an unknown tier or table, or a YAML that does not hold.
    """
    found = study_at(tier, tables, "check")
    seconds, cores = recorded_seconds(), environment.cores()
    seen: dict[str, str] = {}
    answers: dict[str, str] = {}  # runs that only their seed tells apart are checked once
    failed = 0
    for name, plan in found.plans.items():
        print(f"{name}: {len(plan.cells)} cells, {len(plan.runs)} runs, {duration(plan.runs.values(), seconds, cores)}")
        for run in plan.runs.values():
            if run.id in seen:
                print(f"  {run.id} {seen[run.id]} (shared)")
                continue
            asked = canonical_json({key: run.config[key] for key in ("job", "settings", "sources", "versions")})
            if asked not in answers:
                answers[asked] = _checked(run, name)
            seen[run.id] = answers[asked]
            failed += FAILED in seen[run.id]
            print(f"  {run.id} {seen[run.id]}", flush=True)
    for paper in dict.fromkeys(name.split("/")[0] for name in found.plans):
        own = {id_: found.runs[id_] for name, plan in found.plans.items() if name.startswith(f"{paper}/") for id_ in plan.runs}
        print(f"{paper}: {len(own)} runs, {duration(own.values(), seconds, cores)}")
    print(f"{tier}: {len(seen) - failed} runs stand, {failed} do not; {duration(found.runs.values(), seconds, cores)}")
    return 1 if failed else 0


def _checked(run: Run, table: str) -> str:
    try:
        module = plugins.get("job", run.config["job"]).load()
        settings = parse(module.Settings, run.config["settings"], table)
        remarks = module.check(settings, run.sources)
    except DpbenchError as error:
        return f"{run.config['job']} {FAILED}: {error}"
    synthetic = sorted(key for key, source in run.sources.items() if source.synthetic)
    remarks += [f"synthetic: {', '.join(synthetic)}"] if synthetic else []
    remarks += [f"not as locked: {text}" for text in unlocked(run.config["versions"])]
    return f"{run.config['job']} ok: {'; '.join(remarks)}"

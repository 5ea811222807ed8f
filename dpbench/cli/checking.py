"""Dry-run a tier: build every run's model on the meta device, attach its method, check its data and its privacy budget."""

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
    """Print one line per run and return the exit code: 0 if all runs are OK, 1 if any failed.

    Raises:
        DpbenchError: an unknown tier or table, or an invalid YAML file.
    """
    selected = study_at(tier, tables, "check")
    seconds, cores = recorded_seconds(), environment.cores()
    result_of: dict[str, str] = {}
    result_of_settings: dict[str, str] = {}  # runs that differ only in their seed are checked once
    failed = 0
    for name, plan in selected.plans.items():
        print(f"{name}: {len(plan.cells)} cells, {len(plan.runs)} runs, {duration(plan.runs.values(), seconds, cores)}")
        for run in plan.runs.values():
            if run.id in result_of:
                print(f"  {run.id} {result_of[run.id]} (shared)")
                continue
            settings_key = canonical_json({key: run.config[key] for key in ("job", "settings", "sources", "versions")})
            if settings_key not in result_of_settings:
                result_of_settings[settings_key] = _checked(run, name)
            result_of[run.id] = result_of_settings[settings_key]
            failed += FAILED in result_of[run.id]
            print(f"  {run.id} {result_of[run.id]}", flush=True)
    for paper in dict.fromkeys(name.split("/")[0] for name in selected.plans):
        plans = [plan for name, plan in selected.plans.items() if name.startswith(f"{paper}/")]
        runs = {id_: selected.runs[id_] for plan in plans for id_ in plan.runs}
        print(f"{paper}: {len(runs)} runs, {duration(runs.values(), seconds, cores)}")
    print(f"{tier}: {len(result_of) - failed} runs OK, {failed} failed; {duration(selected.runs.values(), seconds, cores)}")
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

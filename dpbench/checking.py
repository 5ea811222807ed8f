"""Prove a tier without running it: every run's model on the meta device, its engine, its data's schema, its budget."""

from __future__ import annotations

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.study import study_at
from dpbench.validation import parse


def check(tier: str, tables: list[str] | None = None) -> int:
    """Print one line a run; returns the exit code: 0 if all stand, 1 if any does not.

    Raises:
        DpbenchError: an unknown tier or table, or a YAML that does not hold.
    """
    found = study_at(tier, tables, "check")
    seen: dict[str, str] = {}
    failed = 0
    for name, plan in found.plans.items():
        minutes = sum(run.resources.minutes for run in plan.runs.values())
        print(f"{name}: {len(plan.cells)} cells, {len(plan.runs)} runs, about {minutes:.0f} minutes one after another")
        for run in plan.runs.values():
            if run.id in seen:
                print(f"  {run.id} {seen[run.id]} (shared)")
                continue
            try:
                module = plugins.get("job", run.config["job"]).load()
                settings = parse(module.Settings, run.config["settings"], name)
                remarks = module.check(settings, run.sources)
                synthetic = sorted(key for key, source in run.sources.items() if source.synthetic)
                remarks += [f"synthetic: {', '.join(synthetic)}"] if synthetic else []
                seen[run.id] = f"{run.config['job']} ok: {'; '.join(remarks)}"
            except DpbenchError as error:
                failed += 1
                seen[run.id] = f"{run.config['job']} FAILED: {error}"
            print(f"  {run.id} {seen[run.id]}", flush=True)
    print(f"{tier}: {len(seen) - failed} runs stand, {failed} do not")
    return 1 if failed else 0

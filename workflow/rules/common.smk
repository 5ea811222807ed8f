# What the rules share: the study, read once while the DAG is made, and the functions that look things up in it.
import json
import math
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from dpbench import __version__
from dpbench.errors import DpbenchError, unknown
from dpbench.files import canonical_json
from dpbench.spec.tables import fragments_of, path_of
from dpbench.execution.plan import write_plan
from dpbench.execution.study import config_of, study
from dpbench.execution.workflow import KEEP, keep_records_unless_forced, take_turn

try:
    STUDY = study(config_of(config))
except DpbenchError as error:
    raise WorkflowError(str(error)) from None

# Not a bare `python`: an unactivated .venv/bin/snakemake would find the system's. Braces are Snakemake's.
DPBENCH = f"{shlex.quote(sys.executable)} -m dpbench".replace("{", "{{").replace(
    "}", "}}"
)
# Conda's file by its whole path: Snakemake formats it.
ENVIRONMENT = (
    Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
    / "envs"
    / "dpbench.yaml"
)
FORMATS = ["csv", "md", "tex", "html", "json"]
RECORDED = sorted(str(p) for p in Path("results/recorded").glob("*/*.jsonl"))
PLAN = Path("results/plans") / f"{STUDY.config.tier}.json"
PLOTS = {
    name: [plot.name for plot in plan.spec.plots] for name, plan in STUDY.plans.items()
}
# A cluster has no number of cores to divide; `--set-threads run=N` says otherwise.
CLUSTER_THREADS = 16


def one_of(names):
    """A pattern for exactly these names, so that a wrong one fails before anything runs."""
    return "|".join(re.escape(name) for name in sorted(set(names))) or "(?!)"


wildcard_constraints:
    run=one_of(STUDY.runs),
    paper=one_of(name.split("/")[0] for name in STUDY.plans),
    table=one_of(name.split("/")[1] for name in STUDY.plans),
    plot=one_of(plot for plots in PLOTS.values() for plot in plots),


def labels(table, shows):
    """What Snakemake's own report sorts its files by."""
    return {"table": table, "shows": shows, "tier": STUDY.config.tier}


def record_of(run):
    return f"results/runs/{run}/record.json"


def all_records():
    return [record_of(run) for run in STUDY.runs]


def all_tables(formats=FORMATS):
    return [
        f"results/tables/{name}.{ending}" for name in STUDY.plans for ending in formats
    ]


def table_values(wildcards):
    """The values of every table, for what is built from all of them."""
    return all_tables(["json"])


def all_plots():
    return [
        f"results/plots/{name}/{plot}.svg"
        for name, plots in PLOTS.items()
        for plot in plots
    ]


def plan_of(wildcards):
    """The plan of one table.

    Raises:
        WorkflowError: the paper has no such table in this study.
    """
    name = f"{wildcards.paper}/{wildcards.table}"
    if name not in STUDY.plans:
        raise WorkflowError(str(unknown("table", name, STUDY.plans)))
    return STUDY.plans[name]


def parents_of(wildcards):
    """Records of the runs whose artefacts this one reads."""
    parents = STUDY.runs[wildcards.run].parents.values()
    # named by content: a copied folder's newer times mean nothing
    return [ancient(record_of(parent.id)) for parent in parents]


def environment_of(wildcards):
    """What conda is to install, where anybody asks for it."""
    return str(ENVIRONMENT).replace("{", "{{").replace("}", "}}")


def config_of_run(wildcards):
    return canonical_json(STUDY.runs[wildcards.run].config)


def all_cores():
    try:
        return workflow.cores
    except WorkflowError:
        return CLUSTER_THREADS


def refuse_cores():
    """Stop before any work at a number of cores that was mistyped.

    Raises:
        WorkflowError: none, or more than any machine has.
    """
    if not 1 <= all_cores() <= 1024:
        raise WorkflowError(
            f"--cores {all_cores()}: give a number from 1 to 1024, or all"
        )


def threads_of(wildcards):
    """`all`: nothing else runs beside it, which is what makes a timing worth having."""
    wanted = STUDY.runs[wildcards.run].resources.threads
    return all_cores() if wanted == "all" else min(wanted, all_cores())


def mem_mb_of(wildcards):
    return STUDY.runs[wildcards.run].resources.mem_mb


def runtime_of(wildcards):
    """Minutes after which a scheduler may stop the run: four times what is expected on the tier's machine."""
    return max(10, math.ceil(4 * STUDY.runs[wildcards.run].resources.minutes))


def gpus_of(wildcards):
    return STUDY.runs[wildcards.run].resources.gpu


def warm_of(wildcards):
    return int(STUDY.runs[wildcards.run].resources.small)


def seeds_argument():
    seeds = STUDY.config.seeds
    return "" if seeds is None else f"--seeds {' '.join(map(str, seeds))}"


def sources_of_table(wildcards):
    """Dataset or model -> where the runs found it, so that the table asks for the same whatever the network does now."""
    runs = plan_of(wildcards).runs.values()
    found = {key: source.kind for run in runs for key, source in run.sources.items()}
    kinds = {key.partition(":")[2]: kind for key, kind in found.items()}
    return json.dumps(STUDY.config.sources | kinds, sort_keys=True)


def runs_of_table(wildcards):
    return sorted({cell.run for cell in plan_of(wildcards).cells})


def records_of_table(wildcards):
    return [record_of(run) for run in runs_of_table(wildcards)]


def shortest(path):
    """The path from the working tree where it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def definition_of_table(wildcards):
    """The files in which the table, its published values and its paper's deviations are written down."""
    path = path_of(plan_of(wildcards).spec)
    fragments = [shortest(p) for p in fragments_of(path)]
    path = shortest(path)
    optional = [
        path.parent / "published" / f"{wildcards.table}.csv",
        path.parent / "deviations.yaml",
    ]
    existing = [str(p) for p in [path, *fragments, *optional] if p.exists()]
    return [name.replace("{", "{{").replace("}", "}}") for name in existing]


def all_deviations(wildcards):
    return sorted(str(p) for p in Path("benchmarks").glob("*/deviations.yaml"))


def before_the_first_job():
    """Take turns with other Snakemakes in this folder, and keep what they have finished meanwhile.

    Raises:
        WorkflowError: another one is stopped or hangs.
    """
    try:
        take_turn()
        write_plan(STUDY.plans.values(), PLAN)
    except DpbenchError as error:
        raise WorkflowError(str(error)) from None
    keep_records_unless_forced(workflow.dag_settings)

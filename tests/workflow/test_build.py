"""The smoke tier of every table, for real, in a copy of the tree."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from working_tree import Tree

from dpbench.execution.study import Study, config_of, study
from dpbench.spec.models import TIERS

pytestmark = pytest.mark.workflow
SMOKE = ("--cores", "all", "--config", "tier=smoke")
LEARNT = ("accuracy", "loss", "perplexity")
FORMATS = ("csv", "md", "tex", "html", "json")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, str]:
    """(a tree with everything of the smoke tier, what Snakemake said)."""
    tree = Tree.copy(tmp_path_factory.mktemp("built tree"))
    done = tree.snakemake(*SMOKE, "--verbose")
    assert done.returncode == 0, done.stdout[-20000:]
    return tree, done.stdout


@pytest.fixture(scope="module")
def built(build: tuple[Tree, str]) -> Tree:
    """Tests that use it leave it complete."""
    return build[0]


@pytest.fixture
def plan(built: Tree, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("DPBENCH_ROOT", str(built.folder))
    return study(config_of({"tier": TIERS[0]}))


def values(record: Path) -> dict[str, Any]:
    return json.loads(record.read_text(encoding="utf-8"))


def learnt(record: Path) -> dict[str, float | None]:
    """Metrics that must not depend on when or how often a run was started."""
    return {f"{m['name']} {m['labels']}": m["value"] for m in values(record)["metrics"] if m["name"] in LEARNT}


def ready(tree: Tree) -> bool:
    return "Nothing to be done" in tree.snakemake(*SMOKE).stdout


def test_everything_is_there(built: Tree, plan: Study) -> None:
    assert set(built.records()) == set(plan.runs)
    for name in plan.plans:
        for ending in FORMATS:
            assert (built.folder / f"results/tables/{name}.{ending}").stat().st_size > 0
    for path in ("results/claims.json", "results/long.csv", "results/long.parquet", "reports/index.html"):
        assert (built.folder / path).stat().st_size > 0


def test_the_queue_is_read_when_a_job_ends_and_by_no_clock(build: tuple[Tree, str]) -> None:
    output = build[1]
    ended, looks = output.count("Finished jobid"), output.count("Resources before job selection")
    assert 0 < looks <= ended + 1


def test_a_second_run_does_nothing_and_soon(built: Tree) -> None:
    start = time.monotonic()
    assert ready(built)
    assert time.monotonic() - start < 15


def test_a_lock_that_a_killed_snakemake_left_is_no_obstacle(built: Tree) -> None:
    locks = built.folder / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    for name in ("0.input.lock", "0.output.lock"):
        (locks / name).write_text("reports/index.html\n")
    done = built.snakemake(*SMOKE)
    assert done.returncode == 0, done.stdout
    shutil.rmtree(locks)


def test_a_copied_folder_is_as_good_as_new(built: Tree, tmp_path: Path) -> None:
    """Copying may change every time stamp in any order; records are named by content and need not be made again."""
    copy = Tree(tmp_path / "copy")
    shutil.copytree(built.folder, copy.folder)
    now = time.time()
    for number, record in enumerate(sorted(copy.records().values())):
        os.utime(record, (now - number, now - number))
    assert "run" not in {rule for rule, _ in copy.planned(*SMOKE)}


def test_deleting_one_record_makes_it_and_what_is_built_on_it(built: Tree, plan: Study) -> None:
    parents = {parent.id for run in plan.runs.values() for parent in run.parents.values()}
    tables_of = {run: [name for name, p in plan.plans.items() if run in {c.run for c in p.cells}] for run in plan.runs}
    run = next(run for run, names in tables_of.items() if len(names) == 1 and run not in parents)
    (table,) = tables_of[run]
    before = {name: path.stat().st_mtime_ns for name, path in built.records().items()}
    built.records()[run].unlink()

    jobs = built.planned(*SMOKE)
    needed = [
        ("run", [f"results/runs/{run}/record.json"]),
        ("table", [f"results/tables/{table}.{ending}" for ending in FORMATS]),
        *(("plot", [f"results/plots/{table}/{plot.name}.svg"]) for plot in plan.plans[table].spec.plots),
        ("claims", ["results/claims.json"]),
        ("long", ["results/long.csv", "results/long.parquet"]),
        ("report", ["reports/index.html"]),
        ("reproduce", []),
    ]
    assert len(jobs) == len(needed)
    assert set(jobs) == {(rule, frozenset(outputs)) for rule, outputs in needed}

    done = built.snakemake(*SMOKE)
    assert done.returncode == 0, done.stdout[-20000:]
    after = {name: path.stat().st_mtime_ns for name, path in built.records().items()}
    assert {name for name in after if after[name] != before[name]} == {run}
    assert ready(built)


def test_another_tier_and_back_finds_the_records_still_there(built: Tree) -> None:
    assert "run" in {rule for rule, _ in built.planned("--cores", "2", "--config", "tier=laptop")}
    assert ready(built)


def test_killed_in_the_middle_a_plain_rerun_ends_the_same(built: Tree, tmp_path: Path) -> None:
    trained = {name for name, path in built.records().items() if learnt(path)}
    assert len(trained) >= 2
    tree = without(built, trained, tmp_path / "killed tree")

    def in_the_middle() -> bool:
        done = trained & set(tree.records())
        return bool(done) and bool(started(tree, trained) - done)

    killed_when(in_the_middle, tree, *SMOKE)
    assert not trained <= set(tree.records()), "it had ended before it was killed"

    done = tree.snakemake(*SMOKE)
    assert done.returncode == 0, done.stdout[-20000:]
    assert set(tree.records()) == set(built.records())
    for name in trained:
        assert learnt(tree.records()[name]) == pytest.approx(learnt(built.records()[name]), rel=1e-6, nan_ok=False)
    assert ready(tree)


def test_killed_in_the_students_stage_the_teacher_is_kept(built: Tree, plan: Study, tmp_path: Path) -> None:
    (student,) = [run for run in plan.runs.values() if "teacher" in run.parents]
    teacher = student.parents["teacher"].id
    tree = without(built, {student.id, teacher}, tmp_path / "killed tree")
    killed_when(lambda: student.id in started(tree, {student.id}), tree, *SMOKE)
    assert teacher in tree.records(), "the student began before its teacher was there"
    assert student.id not in tree.records(), "it had ended before it was killed"
    before = {path: path.stat().st_mtime_ns for path in tree.records()[teacher].parent.rglob("*")}

    done = tree.snakemake(*SMOKE)
    assert done.returncode == 0, done.stdout[-20000:]
    assert {path: path.stat().st_mtime_ns for path in tree.records()[teacher].parent.rglob("*")} == before
    assert learnt(tree.records()[student.id]) == pytest.approx(learnt(built.records()[student.id]), rel=1e-6)
    assert ready(tree)


def without(built: Tree, runs: set[str], folder: Path) -> Tree:
    """A copy that lacks these runs."""
    tree = Tree(folder)
    shutil.copytree(built.folder, tree.folder)
    for name in runs:
        shutil.rmtree(tree.records()[name].parent)
    return tree


def started(tree: Tree, runs: set[str]) -> set[str]:
    return {name for name in runs if (tree.folder / "results" / "runs" / name / "config.json").exists()}


def killed_when(condition: Callable[[], bool], tree: Tree, *arguments: str) -> None:
    """Snakemake, one job after the other, until the condition holds."""
    process = subprocess.Popen(
        tree.command(*arguments, "--cores", "1"),
        cwd=tree.folder,
        env=tree.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(condition, process)
    kill_all(process)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended by itself with {process.returncode}"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """As a power cut: no process of the group gets to say goodbye, nor any that left the group."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(children, timeout=10)

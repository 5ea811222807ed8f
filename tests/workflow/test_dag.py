"""The DAG before anything runs: it is not empty, it is clean, and a wrong name stops it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from working_tree import Tree

SMOKE = ("--cores", "2", "--config", "tier=smoke")


def test_a_dry_run_from_the_root_has_every_kind_of_job(tree: Tree) -> None:
    rules = {rule for rule, _ in tree.planned(*SMOKE)}
    assert rules == {"run", "table", "plot", "claims", "long", "report", "reproduce"}


def test_the_workflow_folder_alone_builds_the_same(tree: Tree) -> None:
    from_root, alone = tree.planned(*SMOKE), tree.planned("--snakefile", "workflow/Snakefile", *SMOKE)
    assert set(from_root) == {(rule.replace("all", "reproduce"), outputs) for rule, outputs in alone}


@pytest.mark.parametrize("tier", ["laptop", "overnight", "gpu", "paper"])
def test_every_tier_has_a_dag(tree: Tree, tier: str) -> None:
    assert len(tree.planned("--cores", "2", "--config", f"tier={tier}")) > 10


def test_one_table_needs_only_its_own_runs(tree: Tree) -> None:
    jobs = tree.planned(*SMOKE)
    table = next(min(outputs) for rule, outputs in jobs if rule == "table")
    alone = tree.planned(table, *SMOKE)
    assert [rule for rule, _ in alone].count("table") == 1
    assert {rule for rule, _ in alone} == {"run", "table"}
    assert len(alone) < len(jobs)


def test_the_profile_is_loaded(tree: Tree) -> None:
    done = tree.snakemake("--dry-run", *SMOKE)
    assert "workflow specific profile profiles/default" in done.stdout


@pytest.mark.parametrize("cores", ["0", "-1", "1025", "100000"])
def test_a_number_of_cores_that_makes_no_sense_is_refused(tree: Tree, cores: str) -> None:
    done = tree.snakemake("--dry-run", "--cores", cores, "--config", "tier=smoke", "tables=dpzero/quadratic")
    assert done.returncode != 0
    assert f"--cores {cores}: give a number from 1 to 1024, or all" in done.stdout


def test_a_path_with_braces_is_a_path(tree: Tree, tmp_path: Path) -> None:
    braces = Tree(tmp_path / "a {clone} of {}")
    shutil.copytree(tree.folder, braces.folder, ignore=shutil.ignore_patterns("recorded", ".snakemake"))
    table = ("results/tables/dpzero/quadratic.csv", "--cores", "2", "--config", "tier=smoke", "tables=dpzero/quadratic")
    assert [rule for rule, _ in braces.planned(*table)].count("run") == 3


def test_snakemakes_linter_is_content(tree: Tree) -> None:
    done = tree.snakemake("--lint")
    assert done.returncode == 0, done.stdout
    assert "good condition" in done.stdout


def test_snakefmt_would_change_nothing(tree: Tree) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow"], cwd=tree.folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("typed_name", "wrong", "nearest"),
    [
        ("tier=smokey", "smokey", "did you mean 'smoke'?"),
        ("papers=flashpd", "flashpd", "did you mean 'flashdp'?"),
        ("papers=[automatic,flashpd]", "flashpd", "did you mean 'flashdp'?"),
        ("tables=flashpd/nothing", "flashpd", "did you mean 'flashdp'?"),
        ("tables=flashdp", "flashdp", "write PAPER/TABLE"),
        ("teir=smoke", "teir", "did you mean 'tier'?"),
        ("sources={stt2: embedded}", "stt2", "did you mean 'sst2'?"),
        ("sources={sst2: elsewhere}", "elsewhere", "sources.sst2"),
        ("seeds=one", "one", "seeds"),
    ],
)
def test_a_wrong_name_stops_it_with_the_nearest_right_one(tree: Tree, typed_name: str, wrong: str, nearest: str) -> None:
    done = tree.snakemake("--dry-run", "--cores", "2", "--config", typed_name)
    assert done.returncode != 0
    assert f"'{wrong}'" in done.stdout
    assert nearest in done.stdout
    assert "Traceback" not in done.stdout


def test_an_unknown_table_of_a_known_paper_is_named(tree: Tree) -> None:
    table = next(min(outputs) for rule, outputs in tree.planned(*SMOKE) if rule == "table")
    paper, name = table.removesuffix(".csv").split("/")[-2:]
    done = tree.snakemake("--dry-run", *SMOKE, f"tables={paper}/{name}x")
    assert done.returncode != 0
    assert f"did you mean '{paper}/{name}'?" in done.stdout


def test_a_target_that_does_not_exist_is_refused(tree: Tree) -> None:
    done = tree.snakemake("--dry-run", "--cores", "2", "results/tables/flashdp/nothing.csv")
    assert done.returncode != 0
    assert "results/tables/flashdp/nothing.csv" in done.stdout

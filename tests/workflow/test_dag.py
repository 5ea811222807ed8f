"""The DAG before anything runs: it is not empty, it is clean, and a wrong name stops it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from working_tree import Tree, jobs_in

SMOKE = ("--cores", "2", "--config", "tier=smoke")


@pytest.fixture(scope="session")
def smoke(tree: Tree) -> str:
    """What Snakemake prints of a dry run of the smoke tier from the root."""
    done = tree.snakemake("--dry-run", *SMOKE)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def smoke_table(smoke: str) -> str:
    """The first table of the smoke tier."""
    return next(min(outputs) for rule, outputs in jobs_in(smoke) if rule == "table")


def test_a_dry_run_from_the_root_has_every_kind_of_job(smoke: str) -> None:
    rules = {rule for rule, _ in jobs_in(smoke)}
    assert rules == {"run", "table", "plot", "claims", "long", "report", "reproduce"}


def test_the_workflow_folder_alone_builds_the_same(tree: Tree, smoke: str) -> None:
    alone = tree.planned("--snakefile", "workflow/Snakefile", *SMOKE)
    assert set(jobs_in(smoke)) == {(rule.replace("all", "reproduce"), outputs) for rule, outputs in alone}


@pytest.mark.parametrize("tier", ["laptop", "overnight", "gpu", "paper"])
def test_every_tier_has_a_dag(tree: Tree, tier: str) -> None:
    assert len(tree.planned("--cores", "2", "--config", f"tier={tier}")) > 10


def test_one_table_needs_only_its_own_runs(tree: Tree, smoke: str, smoke_table: str) -> None:
    alone = tree.planned(smoke_table, *SMOKE)
    assert [rule for rule, _ in alone].count("table") == 1
    assert {rule for rule, _ in alone} == {"run", "table"}
    assert len(alone) < len(jobs_in(smoke))


def test_the_profile_is_loaded(smoke: str) -> None:
    assert "workflow specific profile profiles/default" in smoke


@pytest.mark.parametrize("cores", ["0", "-1", "1025"])
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
        ("papers=[automatic,flashpd]", "flashpd", "did you mean 'flashdp'?"),
        ("sources={stt2: embedded}", "stt2", "did you mean 'sst2'?"),
    ],
)
def test_a_wrong_name_stops_it_with_the_nearest_right_one(tree: Tree, typed_name: str, wrong: str, nearest: str) -> None:
    """One of the config, of the study and of the sources; test_study.py has them all."""
    done = tree.snakemake("--dry-run", "--cores", "2", "--config", typed_name)
    assert done.returncode != 0
    assert f"'{wrong}'" in done.stdout
    assert nearest in done.stdout
    assert "Traceback" not in done.stdout


def test_an_unknown_table_of_a_known_paper_is_named(tree: Tree, smoke_table: str) -> None:
    paper, name = smoke_table.removesuffix(".csv").split("/")[-2:]
    done = tree.snakemake("--dry-run", *SMOKE, f"tables={paper}/{name}x")
    assert done.returncode != 0
    assert f"did you mean '{paper}/{name}'?" in done.stdout


def test_a_target_that_does_not_exist_is_refused(tree: Tree) -> None:
    done = tree.snakemake("--dry-run", "--cores", "2", "results/tables/flashdp/nothing.csv")
    assert done.returncode != 0
    assert "results/tables/flashdp/nothing.csv" in done.stdout

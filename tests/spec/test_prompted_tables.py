"""DPZero's Tables 4 and 5: published values, the public model they share with generated text, and a night's length."""

from __future__ import annotations

import pytest

from dpbench.execution.study import config_of, resolver
from dpbench.spec.expand import expand
from dpbench.spec.models import TIERS
from dpbench.spec.tables import load_table, published

TABLES = {"opt": ("accuracy", ["sst2", "boolq"]), "opt_f1": ("f1", ["squad", "drop"])}


def plan_of(table, tier, paper="dpzero"):
    return expand(load_table(paper, table), tier, resolver(config_of({"tier": tier})))


@pytest.mark.parametrize("table", TABLES)
def test_every_published_value_has_its_cell(table):
    """At the paper tier cells and values are the same ones; three were looked up by hand."""
    metric, tasks = TABLES[table]
    axes = ("method", "epsilon", "task", "model")
    values = {
        tuple(p.labels[axis] for axis in axes): p.value for p in published(load_table("dpzero", table)) if p.metric == metric
    }
    cells = {tuple(c.labels[axis] for axis in axes) for c in plan_of(table, "paper").cells}
    assert set(values) == cells
    assert len(cells) == 4 * 2 * 3
    known = {
        "opt": {("mezo", "inf", "boolq", "opt_6_7b"): 67.4, ("dpzero", "2", "sst2", "opt_2_7b"): 90.5},
        "opt_f1": {("zero_shot", "none", "drop", "opt_2_7b"): 9.7, ("dpzero", "6", "squad", "opt_1_3b"): 72.6},
    }[table]
    assert {key: values[key] for key in known} == known
    assert {task for _, _, task, _ in cells} == set(tasks)


@pytest.mark.parametrize("table", TABLES)
def test_the_paper_tier_has_the_papers_settings(table):
    for run in plan_of(table, "paper").runs.values():
        run_settings = run.config["settings"]
        assert run_settings["weights"].startswith("facebook_opt_")
        assert (run_settings["dtype"], run_settings["tied"], run_settings["max_length"]) == ("float16", True, 2048)
        assert (run_settings["train_limit"], run_settings["evaluate_limit"]) == (1000, 1000)
        if run_settings["steps"]:
            assert (run_settings["steps"], run_settings["expected_batch_size"], run_settings["zeroth"]["perturbation"]) == (
                20000,
                8,
                1e-3,
            )
        assert run.config["seed"] in (0, 29, 83)


@pytest.mark.parametrize("tier", ["overnight", "gpu"])
def test_the_public_model_is_made_once_for_all_text_tables(tier):
    starts = {
        (paper, table): {i for i, run in plan_of(table, tier, paper).runs.items() if run.config["job"] == "language_modeling"}
        for paper, table in (("dpzero", "opt"), ("dpzero", "opt_f1"), ("automatic", "e2e"))
    }
    assert all(len(start_runs) == 1 for start_runs in starts.values())
    assert len(set.union(*starts.values())) == 1


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("tier", TIERS)
def test_methods_are_paired_and_epsilon_is_as_it_is_called(table, tier):
    plan = plan_of(table, tier)
    seen = {}
    for cell in plan.cells:
        run_settings = plan.runs[cell.run].config["settings"]
        called = {"none": None, "inf": None}.get(cell.labels["epsilon"], cell.labels["epsilon"])
        assert run_settings["epsilon"] == (None if called is None else float(called))
        assert run_settings["dataset"] == cell.labels["task"]
        assert (run_settings["steps"] == 0) == (cell.labels["method"] == "zero_shot")
        seen.setdefault(cell.labels["method"], set()).add((cell.labels["task"], cell.labels["model"], cell.seed))
    assert list(seen) == ["mezo", "dpzero", "zero_shot"]
    assert len(set(map(frozenset, seen.values()))) == 1


def test_small_tiers_stay_small():
    for table in TABLES:
        assert len(plan_of(table, "smoke").runs) == 3
        assert len(plan_of(table, "laptop").runs) <= 8
    night = {
        i: r for table in TABLES for i, r in plan_of(table, "overnight").runs.items() if r.config["job"] == "prompt_completion"
    }
    assert sum(run.resources.minutes for run in night.values()) <= 15


@pytest.mark.parametrize("table", TABLES)
def test_a_model_that_learns_nothing_is_not_judged(table):
    """Z5 asks for OPT's own weights: two methods that both learn nothing would reproduce it."""
    claim = next(c for c in load_table("dpzero", table).claims if c.id.startswith("Z5"))
    models = set(claim.test.where["model"])
    for tier in TIERS:
        model_names = {cell.labels["model"] for cell in plan_of(table, tier).cells}
        assert model_names == models if tier == "paper" else not model_names & models

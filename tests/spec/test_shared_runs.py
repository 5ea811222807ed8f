"""Runs that several tables name exist once, and cells that no run fills stay where the paper has them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpbench.errors import DpbenchError
from dpbench.execution.plan import read_requests, requests_of, write_plan
from dpbench.spec.expand import block_of, expand
from dpbench.spec.models import TIERS
from dpbench.spec.sources import Source
from dpbench.spec.tables import all_tables, load_table, published


def source(kind, name):
    return Source(kind="local", files={"train": name * 4})


def runs(paper, table, tier):
    return expand(load_table(paper, table), tier, source).runs


@pytest.mark.parametrize("tier", TIERS)
def test_groupwise_efficiency_measures_nothing_of_its_own(tier):
    assert set(runs("groupwise", "efficiency", tier)) <= set(runs("flashdp", "batch_size", tier))


@pytest.mark.parametrize("tier", ["smoke", "laptop", "overnight"])
def test_the_two_glue_tables_share_all_runs_of_small_models(tier):
    assert set(runs("automatic", "glue_base", tier)) == set(runs("automatic", "glue_large", tier))


def test_the_two_glue_tables_have_models_of_their_own_at_scale():
    assert not set(runs("automatic", "glue_base", "paper")) & set(runs("automatic", "glue_large", "paper"))


def test_flat_runs_on_mnist_are_those_of_the_image_table():
    flat = {
        run.id
        for run in runs("groupwise", "fixed_per_layer", "laptop").values()
        if run.config["settings"]["clipping"]["scope"] == "flat" and run.config["settings"]["epsilon"] == 3
    }
    assert flat
    assert flat <= set(runs("automatic", "images", "laptop"))


@pytest.mark.parametrize(("tier", "tasks"), [("laptop", {"sst2", "qnli", "qqp"}), ("overnight", {"sst2", "qnli", "qqp", "mnli"})])
def test_features_are_computed_once_for_all_tables(tier, tasks):
    tables = [
        ("automatic", "glue_base"),
        ("automatic", "bound_by_learning_rate"),
        ("groupwise", "glue"),
        ("groupwise", "epochs_sst2"),
    ]
    feature_settings = [
        {r.config["settings"]["dataset"]: r.id for r in runs(*name, tier).values() if r.config["job"] == "text_features"}
        for name in tables
    ]
    everything = feature_settings[0]
    assert set(everything) == tasks
    assert all(run_settings.items() <= everything.items() for run_settings in feature_settings)


@pytest.mark.parametrize(
    ("task", "epochs", "batch", "rows"),
    [("mnli_m", 18, 6000, 392_702), ("qqp", 18, 6000, 363_846), ("qnli", 6, 2000, 104_743), ("sst2", 3, 1000, 67_349)],
)
@pytest.mark.parametrize("table", [("automatic", "glue_base"), ("automatic", "glue_large"), ("groupwise", "glue")])
def test_steps_are_the_published_epochs(table, task, epochs, batch, rows):
    plan = expand(load_table(*table), "paper", source)
    settings = {
        plan.runs[c.run].config["settings"]["steps"]: plan.runs[c.run].config["settings"]
        for c in plan.cells
        if c.labels["task"] == task
    }
    ((steps, step_settings),) = settings.items()
    assert step_settings["expected_batch_size"] == batch
    assert abs(steps - epochs * rows / batch) < 1


def test_published_values_of_the_large_table_are_all_there():
    published_values = {
        (p.labels["method"], p.labels["epsilon"], p.labels["task"]): p.value
        for p in published(load_table("automatic", "glue_large"))
    }
    assert len(published_values) == 40
    assert published_values["auto_s", "3", "sst2"] == 93.92
    assert published_values["auto_v", "8", "mnli_mm"] == 86.10
    assert published_values["rgp", "8", "qnli"] == 90.0
    assert published_values["nonprivate", "inf", "qqp"] == 87.90


def test_published_image_values_have_their_intervals():
    published_values = {
        (p.labels["method"], p.labels["epsilon"], p.labels["task"]): p for p in published(load_table("automatic", "images"))
    }
    assert len(published_values) == 23
    assert (published_values["auto_s", "3", "mnist"].value, published_values["auto_s", "3", "mnist"].spread) == (98.15, 0.07)
    assert "95 %" in published_values["abadi", "8", "imagenette"].spread_kind


def test_the_mismatched_column_is_kept_without_impossible_rows():
    spec = load_table("automatic", "glue_base")
    labels = {"method": "auto_s", "epsilon": "3", "task": "mnli_mm", "model": "roberta_base"}
    assert "mismatched" in block_of(spec, "paper", labels)["why"]
    assert block_of(spec, "paper", labels | {"method": "nonprivate"}) is None
    assert "why" not in block_of(spec, "paper", labels | {"task": "mnli_m"})


def test_a_run_is_asked_for_by_every_table_that_has_it():
    """Of each job one run that is a table's own and one that is a parent, where there are."""
    plans = {(spec.paper, spec.table, tier): expand(spec, tier, source) for spec in all_tables() for tier in ("smoke", "laptop")}
    sample = {}
    for plan in plans.values():
        cells = {cell.run for cell in plan.cells}
        for run in plan.runs.values():
            sample[run.config["job"], run.id in cells, run.config["seed"]] = run
    assert {"text_features", "inference", "language_modeling"} <= {job for job, of_table, _ in sample if not of_table}
    requests = requests_of(plans.values())
    for run in sample.values():
        asking = {(request.paper, request.table, request.tier) for request in requests[run.id]}
        assert asking == {key for key, plan in plans.items() if run.id in plan.runs}
        assert {request.key for request in requests[run.id]} == {run.key}


def test_a_run_is_asked_for_by_each_of_its_cells(tmp_path):
    """By their labels, and the labels of its metrics; a run that others build on, without any."""
    plan = expand(load_table("flashdp", "batch_size"), "smoke", source)
    write_plan([plan], tmp_path / "plan.json")
    for run in plan.runs:
        cells = [(cell.labels, cell.select) for cell in plan.cells if cell.run == run]
        assert [(r.labels, r.select) for r in read_requests(tmp_path / "plan.json", run)] == cells
    assert read_requests(tmp_path / "plan.json", "0" * 12) == []
    features = expand(load_table("automatic", "glue_base"), "laptop", source)
    parents = [run.id for run in features.runs.values() if run.config["job"] == "text_features"]
    assert [(r.labels, r.select) for run in parents for r in requests_of([features])[run]] == [({}, {})] * len(parents)


@pytest.mark.parametrize("text", ["[]", "{", '{"requests": []}', '{"requests": {"000000000000": [{"paper": "x"}]}}'])
def test_a_plan_that_is_none_is_one_error_that_names_the_file(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(DpbenchError) as caught:
        read_requests(path, "0" * 12)
    assert str(path) in caught.value.what
    assert "snakemake" in caught.value.hint


def test_cells_may_have_seeds_of_their_own():
    """And a table does not ask for a seed that only its other cells have."""
    spec = load_table("dpzero", "roberta")
    plan = expand(spec, "overnight", source)
    model_seeds = {(cell.labels["model"], cell.seed) for cell in plan.cells}
    assert model_seeds == {("minilm_head", seed) for seed in range(5)} | {("minilm_l3", seed) for seed in range(3)}
    assert {cell.seed for cell in expand(spec, "overnight", source, [3]).cells} == {3}, "a person's seeds come before all others"


def test_a_parent_that_a_job_does_not_declare_is_refused(monkeypatch):
    from dpbench import plugins

    get = plugins.get

    def without(kind, name, where=""):
        plugin = get(kind, name, where)
        return replace(plugin, extra=plugin.extra | {"parents": []}) if (kind, name) == ("job", "text_classification") else plugin

    monkeypatch.setattr(plugins, "get", without)
    with pytest.raises(DpbenchError, match="parent features is a job text_features"):
        runs("automatic", "glue_base", "laptop")

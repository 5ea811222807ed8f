"""The five tables of DP model compression: one teacher for all, paired methods, the published set-up, what is theirs and ours."""

from __future__ import annotations

import pytest
from spending import epsilon_of

from dpbench.compression.parts import depth_of
from dpbench.report.deviations import deviations
from dpbench.spec.expand import expand
from dpbench.spec.models import TIERS
from dpbench.spec.sources import Source
from dpbench.spec.tables import load_table, published

TABLES = ("dpkd", "dpkd_public_student", "structured_pruning", "unstructured_pruning", "epsilon")
EPOCHS = {"mnli": 10, "qnli": 10, "qqp": 5, "sst2": 5}
ROWS = {"mnli": 392_702, "qnli": 104_743, "qqp": 363_846, "sst2": 67_349}


def source(kind, name):
    return Source(kind="local", files={"train": name * 4})


def plan(table, tier):
    return expand(load_table("compression", table), tier, source)


def cells(table, tier):
    """(labels, seed, settings, run) of every cell."""
    table_plan = plan(table, tier)
    return [(c.labels, c.seed, table_plan.runs[c.run].config["settings"], table_plan.runs[c.run]) for c in table_plan.cells]


@pytest.mark.parametrize("tier", TIERS)
def test_a_teacher_is_trained_once_for_all_tables(tier):
    """Every student's teacher is a run of the whole model; one task, seed and epsilon has one, whichever table asks."""
    teachers = {}
    for table in TABLES:
        for labels, seed, settings, run in cells(table, tier):
            if "teacher" not in run.parents:
                assert "teacher" not in settings
                continue
            parent = run.parents["teacher"]
            teacher_settings = parent.config["settings"]
            assert not {"student", "teacher", "distil", "split", "drop", "prune"} & set(teacher_settings)
            assert teacher_settings["model"] == settings["model"]
            assert parent.config["seed"] == seed
            if settings["epsilon"] is None:
                assert teacher_settings["epsilon"] is None, "a non-private student has a non-private teacher"
            else:
                assert teacher_settings["epsilon"] == settings["epsilon"] * settings["split"]["teacher"]
            key = (labels["task"], labels["model"], settings["epsilon"], seed)
            assert teachers.setdefault(key, parent.id) == parent.id
    assert teachers


@pytest.mark.parametrize("tier", TIERS)
def test_the_whole_models_rows_are_the_same_runs_in_every_table(tier):
    runs_by_cell = {}
    for table in TABLES:
        for labels, seed, _, run in cells(table, tier):
            if labels["method"] == "whole":
                key = (labels["task"], labels["model"], labels["epsilon"], seed)
                assert runs_by_cell.setdefault(key, run.id) == run.id


@pytest.mark.parametrize("tier", TIERS[1:])
def test_the_teachers_row_is_the_run_that_students_learn_from(tier):
    teacher_runs = {(c[0]["task"], c[1]): c[3].id for c in cells("dpkd", tier) if c[0]["method"] == "teacher"}
    taught = [c for c in cells("dpkd", tier) if c[0]["method"] == "dpkd" and c[0]["epsilon"] == "8"]
    assert taught
    assert all(teacher_runs[labels["task"], seed] == run.parents["teacher"].id for labels, seed, _, run in taught)


@pytest.mark.parametrize("tier", ["overnight", "gpu", "paper"])
def test_a_nonprivate_teacher_is_the_nonprivate_whole_model(tier):
    whole_model_runs = {
        (c[0]["task"], c[1]): c[3].id for c in cells("dpkd", tier) if (c[0]["method"], c[0]["epsilon"]) == ("whole", "inf")
    }
    taught = [c for c in cells("dpkd", tier) if (c[0]["method"], c[0]["epsilon"]) == ("dpkd", "inf")]
    assert taught
    assert all(run.parents["teacher"].id == whole_model_runs[labels["task"], seed] for labels, seed, _, run in taught)


@pytest.mark.parametrize("table", TABLES)
def test_the_paper_tier_has_the_published_set_up(table):
    for labels, _, settings, _ in cells(table, "paper"):
        assert settings["model"] == "bert_base"
        assert settings["expected_batch_size"] == 256
        assert settings["optimizer"]["learning_rate"] == 5e-5
        if settings["clipping"] is not None:
            assert (settings["clipping"]["function"], settings["clipping"]["bound"]) == ("abadi", 1.0)
        if (task := labels["task"]) in EPOCHS:
            assert settings["steps"] == pytest.approx(EPOCHS[task] * ROWS[task] / 256, abs=1)
        half = settings.get("student") or settings.get("drop")
        assert half is None or 2 * half["layers"] == depth_of("bert_base")
        assert "prune" not in settings or settings["prune"]["sparsity"] == 0.5


@pytest.mark.parametrize("tier", ["overnight", "gpu", "paper"])
def test_the_quoted_noise_is_a_row_of_its_own(tier):
    quoted_noise_cells = [c for c in cells("dpkd", tier) if c[0]["method"] == "as_published"]
    assert quoted_noise_cells
    assert {(c[2]["noise_multiplier"], c[2]["epsilon"]) for c in quoted_noise_cells} == {(0.1, None)}
    others = [c for table in TABLES for c in cells(table, tier) if c[0]["method"] != "as_published"]
    assert not any("noise_multiplier" in c[2] for c in others)


@pytest.mark.parametrize("tier", ["overnight", "gpu", "paper"])
def test_distillation_is_compared_at_both_budgets(tier):
    by = {}
    for labels, seed, settings, _ in cells("dpkd", tier):
        if labels["epsilon"] == "8":
            by[labels["method"], labels["start"], labels["task"], seed] = settings
    apart = ("student", "teacher", "distil", "split", "budget")
    for (method, start, task, seed), settings in by.items():
        if method == "dpkd" and start == "pretrained":
            full_budget_run, own_budget_run = by["half", start, task, seed], by["half_own", start, task, seed]
            rests = [{k: v for k, v in s.items() if k not in apart} for s in (settings, full_budget_run, own_budget_run)]
            assert rests[0] == rests[1] == rests[2]
            assert own_budget_run["budget"] == "student"
            assert own_budget_run["split"] == settings["split"]
            assert own_budget_run["student"] == full_budget_run["student"] == settings["student"]
        if method == "dpkd" and start == "teacher":
            copied = by["copied", start, task, seed]
            assert {k: v for k, v in settings.items() if k != "distil"} == {k: v for k, v in copied.items() if k != "distil"}


@pytest.mark.parametrize("tier", TIERS)
def test_inference_is_timed_once_and_alone(tier):
    timed = {}
    for table in TABLES:
        for run in plan(table, tier).runs.values():
            if run.config["job"] == "inference":
                timed[run.id] = run.resources.threads
    assert list(timed.values()) == ([] if tier == "smoke" else ["all"])


@pytest.mark.parametrize("table", TABLES)
def test_claims_have_three_seeds_overnight_and_one_on_a_laptop(table):
    assert {seed for _, seed, _, _ in cells(table, "overnight")} == {0, 1, 2}
    assert {seed for _, seed, _, _ in cells(table, "laptop")} == {0}


@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_published_that_has_not_been_read(table):
    assert published(load_table("compression", table)) == []


def test_both_sides_of_every_claim_are_there_overnight():
    for table in TABLES:
        labels = [c[0] for c in cells(table, "overnight")]
        for claim in load_table("compression", table).claims:
            for side in (claim.test.of, claim.test.against):
                side_labels = {k: v if isinstance(v, list) else [v] for k, v in (claim.test.where | side).items()}
                for axis, values in side_labels.items():
                    other_labels = {k: v for k, v in side_labels.items() if k != axis}
                    for value in values:
                        assert any(one[axis] == value and all(one[k] in v for k, v in other_labels.items()) for one in labels), (
                            f"{table} {claim.id}: {axis} {value}"
                        )


def test_laptop_runs_are_few():
    every = {name for table in TABLES for name in plan(table, "laptop").runs}
    assert len(every) <= 13


def test_comp_1_the_quoted_noise_means_an_epsilon_of_hundreds():
    asked = {"noise_multiplier": 0.1, "sample_rate": 256 / ROWS["sst2"], "steps": 1315, "delta": 1 / (2 * ROWS["sst2"])}
    assert epsilon_of(**asked) == pytest.approx(785, abs=1)
    assert epsilon_of(**asked, accountant="rdp") == pytest.approx(5695, abs=1)
    (known,) = deviations("compression")
    assert "785 by PLD and 5,695 by RDP" in known.fact
    assert any("785 by PLD and 5,695 by RDP" in note for note in load_table("compression", "dpkd").notes)

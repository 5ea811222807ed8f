"""The group-wise paper's own method in its tables: where it stands, how its settings were chosen, what its exact claim says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dpbench.files import sha256_text
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.records.schema import Environment, Metric, Record, Request
from dpbench.records.store import Stored
from dpbench.report.claims import judge
from dpbench.report.collect import build_table
from dpbench.spec.expand import expand
from dpbench.spec.models import TIERS
from dpbench.spec.sources import Source
from dpbench.spec.tables import load_table

TABLES = ("glue", "epochs_sst2", "cifar10", "fixed_per_layer")
SEARCH = "threshold_search"
SMALL = ("laptop", "overnight")


def source(kind, name):
    return Source(kind="local", files={"train": sha256_text(name)})


def cells(table, tier):
    """(labels, seed, settings, run) of every cell."""
    plan = expand(load_table("groupwise", table), tier, source)
    return [(c.labels, c.seed, plan.runs[c.run].config["settings"], c.run) for c in plan.cells]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("table", TABLES)
def test_adaptive_thresholds_have_a_row_beside_flat_and_fixed(table, tier):
    by_method = {}
    for labels, seed, settings, _ in cells(table, tier):
        other_labels = frozenset((k, v) for k, v in labels.items() if k != "method")
        by_method.setdefault(labels["method"], {})[other_labels, seed] = settings
    adaptive_cells = by_method["per_layer_adaptive"]
    assert adaptive_cells.keys() == by_method["flat"].keys() == by_method["per_layer_fixed"].keys(), "each cell is paired"
    for key, cell_settings in adaptive_cells.items():
        assert cell_settings["clipping"]["scope"] == "per_layer"
        assert cell_settings["clipping"]["adaptive"]["budget"] == 0.01, "the paper's"
        fixed, flat = by_method["per_layer_fixed"][key], by_method["flat"][key]
        assert {k: v for k, v in cell_settings["clipping"].items() if k != "adaptive"} == fixed["clipping"]
        assert cell_settings["clipping"]["bound"] == flat["clipping"]["bound"]
        if table in ("cifar10", "fixed_per_layer"):
            assert cell_settings["optimizer"].pop("by_bound"), "under SGD a larger bound is a larger step"
        apart = ("clipping", "method")
        assert {k: v for k, v in cell_settings.items() if k not in apart} == {k: v for k, v in flat.items() if k not in apart}


@pytest.mark.parametrize("tier", SMALL)
def test_claims_are_judged_on_three_seeds_or_more_overnight(tier):
    for table in (*TABLES, "quantile_ablation"):
        seeds = {seed for _, seed, _, _ in cells(table, tier)}
        assert len(seeds) >= 3 if tier == "overnight" else seeds == {0}


@pytest.mark.parametrize("tier", TIERS)
def test_the_search_never_sees_the_evaluated_rows(tier):
    searched = cells(SEARCH, tier)
    assert {settings["evaluate_on"] for _, _, settings, _ in searched} == {"train_rest"}
    assert {settings["dataset"] for _, _, settings, _ in searched} == {"sst2"}
    others = [cell for table in (*TABLES, "quantile_ablation") for cell in cells(table, tier)]
    assert not any("evaluate_on" in settings for _, _, settings, _ in others)
    assert not {seed for _, seed, _, _ in searched} & {seed for _, seed, _, _ in others}


def test_what_the_text_tables_use_is_a_cell_of_the_search():
    """All but the rows at hand, steps and caveats is that of groupwise/glue, so the search is about the settings it chose."""
    free = ("evaluate_on", "steps", "caveats", "epsilon")

    def spelled(settings):
        return {k: v for k, v in settings.items() if k not in free}

    searched = [spelled(settings) for _, _, settings, _ in cells(SEARCH, "overnight")]
    used = [s for table in ("glue", "epochs_sst2") for _, _, s, _ in cells(table, "overnight") if s["dataset"] == "sst2"]
    private = [spelled(s) for s in used if s["clipping"] is not None]
    assert private
    assert all(setting in searched for setting in private)


def test_the_ablation_shares_cells_with_the_glue_table():
    glue = {(c[0]["method"], c[0]["epsilon"]): c[3] for c in cells("glue", "laptop") if c[0]["task"] == "sst2"}
    ablation = {(c[0]["quantile"], c[0]["budget"]): c[3] for c in cells("quantile_ablation", "laptop")}
    assert ablation["0.7", "nonprivate"] == glue["nonprivate", "inf"]
    assert ablation["0.7", "fixed"] == glue["per_layer_fixed", "3"]
    assert ablation["0.7", "0.01"] == glue["per_layer_adaptive", "3"]


ENVIRONMENT = Environment(
    python="3.12.1", platform="Linux", packages={}, device="cpu", device_name="", cpu="a processor", cores=2, memory_gib=8,
    threads=1, commit=None, dirty=None,
)  # fmt: skip


@pytest.mark.parametrize(("spent", "verdict"), [(0.01, "reproduced"), (0.02, "not reproduced")])
def test_the_exact_price_of_quantiles_decides_alone(spent, verdict):
    """One seed: the count is exact. Planted fault: a mechanism that spends 2 % where the column says 1 %."""
    spec = load_table("groupwise", "quantile_ablation")
    plan = expand(spec, "laptop", source)
    stored = {}
    for cell in plan.cells:
        budget = {"0.01": spent, "0.001": 0.001, "0.5": 0.5}.get(cell.labels["budget"])
        ratio = 1.0 if budget is None else Adaptive(0.7, budget=budget).gradient_noise_multiplier(2.0) / 2.0
        run = plan.runs[cell.run]
        record = Record(
            run=run.id,
            config=run.config,
            requests=[Request(paper="groupwise", table=spec.table, tier="laptop", key=run.key, labels=cell.labels)],
            sources=run.sources,
            metrics=[Metric(name="noise_ratio", value=ratio, unit="x", kind="counted")],
            environment=ENVIRONMENT,
            seconds=1.0,
            created="2026-01-01T00:00:00+00:00",
        )
        stored[run.id] = Stored(record, Path("record.json"), None)
    judged_by_id = {j.id: j for j in judge(build_table(spec, "laptop", source, list(stored.values()), []))}
    assert judged_by_id["G6"].verdict == verdict
    assert judged_by_id["G6"].evidence.decisive.estimate == pytest.approx(1 / math.sqrt(1 - spent), rel=1e-12)
    assert judged_by_id["G6a"].verdict == "not run"

"""The tables of generated text: published values, and runs that both papers share."""

from __future__ import annotations

import pytest

from dpbench.execution.study import config_of, resolver
from dpbench.spec.expand import expand
from dpbench.spec.models import TIERS
from dpbench.spec.tables import load_table, published


def test_the_published_values_stand_where_the_table_has_them():
    spec = load_table("automatic", "e2e")
    axes = ("method", "start", "epsilon", "model")
    values = {(*(p.labels[axis] for axis in axes), p.metric): p.value for p in published(spec)}
    assert len(values) == 150
    assert values["auto_s", "public", "3", "gpt2", "bleu"] == 61.340
    assert values["abadi", "scratch", "8", "gpt2", "nist"] == 1.01
    assert values["auto_s", "public", "8", "gpt2_large", "cider"] == 2.163
    assert {metric for *_, metric in values} == set(spec.metrics)


@pytest.mark.parametrize("tier", TIERS)
def test_flat_runs_on_e2e_are_the_same_in_both_tables(tier):
    """So that they are made once."""
    resolve = resolver(config_of({"tier": tier}))
    one = {run.id for run in expand(load_table("automatic", "e2e"), tier, resolve).runs.values()}
    plan = expand(load_table("groupwise", "table_to_text"), tier, resolve)
    shared = {c.run for c in plan.cells if c.labels["clipping"] == "flat" and c.labels["dataset"] == "e2e"} & one
    assert bool(shared) == (tier != "smoke")


@pytest.mark.parametrize("tier", TIERS)
def test_adaptive_thresholds_have_a_row_on_every_dataset(tier):
    plan = expand(load_table("groupwise", "table_to_text"), tier, resolver(config_of({"tier": tier})))
    by_row = {}
    for cell in plan.cells:
        if cell.labels["epsilon"] != "inf":
            by_row.setdefault(cell.labels["clipping"], set()).add((cell.labels["dataset"], cell.labels["epsilon"], cell.seed))
    assert list(by_row) == ["flat", "per_layer", "per_layer_adaptive"]
    assert len(set(map(frozenset, by_row.values()))) == 1  # paired
    adaptive = {c.run for c in plan.cells if c.labels["clipping"] == "per_layer_adaptive" and c.labels["epsilon"] != "inf"}
    assert all(plan.runs[run].config["settings"]["clipping"]["adaptive"]["budget"] == 0.01 for run in adaptive)


@pytest.mark.parametrize(("paper", "table"), [("automatic", "e2e"), ("groupwise", "table_to_text")])
def test_a_night_is_long_enough_and_judges_three_seeds(paper, table):
    """Forty minutes of two cores, as planned; rows that claims compare have three seeds."""
    spec = load_table(paper, table)
    plan = expand(spec, "overnight", resolver(config_of({"tier": "overnight"})))
    assert sum(run.resources.minutes for run in plan.runs.values()) <= 80
    for claim in spec.claims:
        for side in (claim.test.of, claim.test.against):
            seeds = {}
            for cell in plan.cells:
                epsilons = claim.test.where["epsilon"]
                if all(cell.labels[axis] == value for axis, value in side.items()) and cell.labels["epsilon"] in epsilons:
                    seeds.setdefault(tuple(cell.labels.values()), set()).add(cell.seed)
            assert set(map(len, seeds.values())) == {3}

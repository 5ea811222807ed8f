"""Claims on sums, bests and spreads over a grid: seed by seed, and never on part of it."""

from __future__ import annotations

from typing import Any

import pytest
from report_fakes import REAL, TIERS, glue, made_up, resolver

from dpbench.records.schema import Metric
from dpbench.report.claims import judge
from dpbench.report.collect import build_table
from dpbench.spec.models import Claim, ClaimTest

RATES, BOUNDS = ["1", "2", "4"], ["1", "8"]
GRID = {"abadi": {("1", "1"): 70, ("1", "2"): 90, ("1", "4"): 60, ("8", "1"): 80, ("8", "2"): 50, ("8", "4"): 40}}


def judged(value: Any, seeds: list[int], of: Any, against: Any, **test: Any) -> Any:
    """The one claim of a table of methods and bounds by learning rates."""
    axes = {"learning_rate": [int(r) for r in RATES]}
    spec = glue(
        rows={"method": ["abadi", "auto_s"], "bound": [int(b) for b in BOUNDS]},
        columns=axes,
        cells=[{"method": "abadi"}, {"method": "auto_s", "bound": 1}],
        seeds=seeds,
        tiers={tier: {} for tier in TIERS},
        claims=[],
        plots=[],
    )
    test = ClaimTest(metric="accuracy", of=of, against=against, **test)
    spec = spec.model_copy(update={"claims": [Claim(id="X", says="x", test=test)]})
    return judge(build_table(spec, "laptop", resolver(REAL), made_up(spec, "laptop", value), []))[0]


def grid(labels: dict[str, str], seed: int, metric: str) -> float:
    if labels["method"] == "auto_s":
        return 60 + seed
    return GRID["abadi"][labels["bound"], labels["learning_rate"]] + seed


def test_a_sum_is_over_all_cells_of_each_side() -> None:
    sides = {"of": {"method": "auto_s"}, "against": {"method": "abadi"}, "reduce": {"learning_rate": "sum", "bound": "sum"}}
    judgement = judged(grid, [0, 1], **sides, ratio_at_most=0.5)
    pairing = judgement.evidence.decisive
    assert (pairing.n, len(pairing.cells)) == (2, 1)
    assert pairing.cells[0].of == pytest.approx(3 * 60.5)
    assert pairing.cells[0].against == pytest.approx(390 + 6 * 0.5)
    assert judgement.verdict == "reproduced"
    assert "sum over learning rate, then sum over bound" in judgement.sentence
    assert len(judgement.evidence.runs) == 2 * 9


def test_the_spread_of_bests_folds_axis_after_axis() -> None:
    """Best over learning rate: 90 and 80. The other order gives the best of the spreads: 10, 40, 20."""
    sides = {"of": {"method": "abadi"}, "against": {"method": "auto_s"}}
    judgement = judged(grid, [0, 1, 2], **sides, reduce={"learning_rate": "max", "bound": "spread"}, difference_at_least=5.0)
    assert judgement.evidence.decisive.estimate == pytest.approx(10)
    assert judgement.verdict == "reproduced"
    judgement = judged(grid, [0, 1, 2], **sides, reduce={"bound": "spread", "learning_rate": "max"}, difference_at_least=5.0)
    assert judgement.evidence.decisive.estimate == pytest.approx(40)


def test_a_best_is_each_seeds_own() -> None:
    def value(labels: dict[str, str], seed: int, metric: str) -> float:
        return float(labels["learning_rate"] == RATES[seed])  # another rate wins in each seed

    sides = {"of": {"method": "abadi"}, "against": {"method": "auto_s"}}
    judgement = judged(value, [0, 1, 2], **sides, reduce={"learning_rate": "max", "bound": "min"}, difference_at_least=0.0)
    assert judgement.evidence.decisive.cells[0].of == pytest.approx(1.0)


def test_part_of_a_grid_is_not_judged() -> None:
    def value(labels: dict[str, str], seed: int, metric: str) -> Metric | float | None:
        return None if labels["bound"] == "8" and labels["learning_rate"] == "4" else grid(labels, seed, metric)

    sides = {"of": {"method": "auto_s"}, "against": {"method": "abadi"}}
    judgement = judged(value, [0, 1], **sides, reduce={"learning_rate": "sum", "bound": "sum"}, ratio_at_most=0.5)
    assert judgement.verdict == "not run"
    judgement = judged(value, [0, 1], **sides, reduce={"learning_rate": "sum"}, ratio_at_most=0.9)
    assert judgement.evidence.decisive.cells[0].labels == {"bound": "1"}  # the bound whose row is whole

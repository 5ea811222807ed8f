"""Verdicts: where the interval lies decides, and weak evidence never decides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fakes import EMBEDDED, REAL, batch_size, glue, made_up, resolver

from dpbench.records.schema import Metric
from dpbench.records.store import Stored
from dpbench.report.claims import judge, read_claims, write_claims
from dpbench.report.collect import build_table
from dpbench.report.data import Entry
from dpbench.report.pairing import decide, judge_pairing, t_interval
from dpbench.spec.models import ClaimTest, TableSpec


def accuracy(gain: float, wobble: float = 0.1) -> Any:
    """auto_s is `gain` above abadi, give or take `wobble` per seed."""

    def value(labels: dict[str, str], seed: int, metric: str) -> float:
        return 80 + seed + (gain + wobble * (seed - 1) if labels["method"] == "auto_s" else 0)

    return value


def verdict(spec: TableSpec, local: list[Stored], recorded: list[Stored] | None = None, tier: str = "laptop") -> Any:
    return judge(build_table(spec, tier, resolver(REAL), local, recorded or []))[0]


@pytest.mark.parametrize(("gain", "expected"), [(0.3, "reproduced"), (-2.0, "not reproduced"), (-0.55, "inconclusive")])
def test_the_interval_decides(gain: float, expected: str) -> None:
    spec = glue()
    judged = verdict(spec, made_up(spec, "laptop", accuracy(gain)))
    assert judged.verdict == expected
    pairing = judged.evidence.pairings[0]
    assert pairing.n == 3
    assert pairing.estimate == pytest.approx(gain)
    assert pairing.low < gain < pairing.high
    assert {c.labels["epsilon"] for c in pairing.cells} == {"3", "8"}
    assert len(judged.evidence.runs) == 12


@pytest.mark.parametrize(
    ("side", "low", "high", "expected"),
    [
        ("at_least", 0.0, 1.0, "reproduced"),
        ("at_least", -1.0, -0.1, "not reproduced"),
        ("at_least", -1.0, 0.0, "inconclusive"),
        ("at_most", -1.0, 0.0, "reproduced"),
        ("at_most", 0.1, 1.0, "not reproduced"),
        ("at_most", 0.0, 1.0, "inconclusive"),
    ],
)
def test_the_threshold_is_on_the_claimed_side(side: str, low: float, high: float, expected: str) -> None:
    assert decide(low, high, side, 0.0) == expected


def test_nothing_to_judge_by_is_not_run() -> None:
    judged = verdict(glue(), [])
    assert judged.verdict == "not run"
    assert judged.evidence is None


def test_a_single_seed_is_inconclusive() -> None:
    spec = glue(seeds=[0])
    judged = verdict(spec, made_up(spec, "laptop", accuracy(5)))
    assert judged.verdict == "inconclusive"
    assert "single seed" in judged.sentence


def test_smoke_is_inconclusive() -> None:
    spec = glue()
    judged = verdict(spec, made_up(spec, "smoke", accuracy(5)), tier="smoke")
    assert judged.verdict == "inconclusive"
    assert "smoke" in judged.sentence


@pytest.mark.parametrize("gain", [5.0, -5.0])
def test_synthetic_evidence_is_inconclusive_either_way(gain: float) -> None:
    spec = glue()
    table = build_table(spec, "laptop", resolver(EMBEDDED), made_up(spec, "laptop", accuracy(gain), sources=EMBEDDED), [])
    judged = judge(table)[0]
    assert judged.verdict == "inconclusive"
    assert "synthetic" in judged.sentence


def test_simulated_evidence_is_inconclusive() -> None:
    spec = glue()

    def value(labels: dict[str, str], seed: int, metric: str) -> Metric:
        return Metric(name=metric, value=accuracy(5)(labels, seed, metric), unit="%", kind="simulated")

    assert "simulated" in verdict(spec, made_up(spec, "laptop", value)).sentence


def test_real_evidence_of_a_lower_tier_beats_synthetic_evidence() -> None:
    spec = glue()
    local = made_up(spec, "laptop", accuracy(1)) + made_up(spec, "overnight", accuracy(-5), sources=EMBEDDED)
    judged = verdict(spec, local)
    assert (judged.evidence.tier, judged.verdict) == ("laptop", "reproduced")
    assert [e.tier for e in judged.others] == ["overnight"]


def test_the_highest_tier_rules_and_machines_are_not_mixed() -> None:
    spec = glue()
    recorded = made_up(spec, "laptop", accuracy(1), machine="a") + made_up(spec, "overnight", accuracy(-5), machine="b")
    judged = verdict(spec, made_up(spec, "laptop", accuracy(1)), recorded)
    assert (judged.evidence.tier, judged.evidence.machine, judged.verdict) == ("overnight", "b", "not reproduced")
    assert {(e.origin, e.machine) for e in judged.others} == {("recorded", "a"), ("here", "")}


def throughput(fused: float, noise: tuple[float, ...] = (-0.01, 0.0, 0.01), opacus: float | None = 500.0) -> Any:
    base = {"nonprivate": 1000.0, "opacus": opacus, "ghost": 800.0, "fused": fused}

    def value(labels: dict[str, str], seed: int, metric: str) -> Metric:
        level = base[labels["engine"]]
        if level is None:
            return Metric(name=metric, value=None, unit="tokens/s", note="skipped: opacus is not installed")
        drift = noise if labels["engine"] == "fused" else [0.0] * len(noise)
        rounds = [level * (1 + d) for d in drift]
        return Metric(name=metric, value=level, unit="tokens/s", rounds=rounds, low=min(rounds), high=max(rounds))

    return value


def engines(against: list[str], **threshold: float) -> TableSpec:
    """`batch_size` with one claim that fused compares with several engines."""
    spec = batch_size()
    all_thresholds = {f"{k}_at_{s}": None for k in ("difference", "ratio") for s in ("least", "most")} | threshold
    test = ClaimTest.model_construct(
        metric="throughput", of={"engine": "fused"}, against={"engine": against}, where={}, **all_thresholds
    )
    return spec.model_copy(update={"claims": [spec.claims[0].model_copy(update={"test": test})]})


@pytest.mark.parametrize(("fused", "expected"), [(950.0, "reproduced"), (850.0, "not reproduced"), (900.0, "inconclusive")])
def test_rounds_of_one_run_give_the_interval(fused: float, expected: str) -> None:
    spec = batch_size()
    judged = verdict(spec, made_up(spec, "laptop", throughput(fused)))
    assert judged.verdict == expected
    assert (judged.evidence.decisive.over, judged.evidence.decisive.n) == ("rounds", 3)


@pytest.mark.parametrize(("fused", "expected"), [(900.0, "reproduced"), (899.0, "not reproduced")])
def test_zero_variance_gives_a_point(fused: float, expected: str) -> None:
    spec = batch_size()
    judged = verdict(spec, made_up(spec, "laptop", throughput(fused, noise=(0.0, 0.0, 0.0))))
    pairing = judged.evidence.decisive
    assert judged.verdict == expected
    assert pairing.low == pytest.approx(pairing.high)


def test_the_worst_of_several_comparisons_is_the_verdict() -> None:
    spec = engines(["opacus", "ghost"], ratio_at_least=1.0)
    judged = verdict(spec, made_up(spec, "laptop", throughput(700.0)))
    assert {p.against["engine"]: p.verdict for p in judged.evidence.pairings} == {
        "opacus": "reproduced",
        "ghost": "not reproduced",
    }
    assert judged.verdict == "not reproduced"
    assert "ghost" in judged.sentence


def test_a_claim_with_an_empty_comparison_is_not_reproduced() -> None:
    spec = engines(["opacus", "ghost"], ratio_at_least=1.0)
    judged = verdict(spec, made_up(spec, "laptop", throughput(950.0, opacus=None)))
    assert judged.verdict == "inconclusive"
    assert "opacus is not installed" in judged.sentence


def test_a_ratio_of_a_value_that_is_not_above_0_is_inconclusive() -> None:
    spec = batch_size()
    judged = verdict(spec, made_up(spec, "laptop", throughput(0.0)))
    assert judged.verdict == "inconclusive"
    assert "above 0" in judged.sentence


def test_ratios_are_combined_on_the_log_scale() -> None:
    spec = batch_size()

    def value(labels: dict[str, str], seed: int, metric: str) -> Metric:
        half = labels["size"] == "mini"
        level = {"nonprivate": 100.0, "fused": 50.0 if half else 200.0}.get(labels["engine"], 1.0)
        return Metric(name=metric, value=level, unit="", rounds=[level, level])

    assert verdict(spec, made_up(spec, "laptop", value)).evidence.decisive.estimate == pytest.approx(1.0)


def test_claims_file_holds_everything(tmp_path: Path) -> None:
    spec = glue()
    judged = judge(build_table(spec, "laptop", resolver(REAL), made_up(spec, "laptop", accuracy(0.3)), []))
    write_claims(judged, tmp_path / "claims.json")
    assert read_claims(tmp_path / "claims.json") == judged
    assert json.loads((tmp_path / "claims.json").read_text())[0]["verdict"] == "reproduced"


def entry(method: str, values: list[float]) -> Entry:
    by_seed = {str(i): v for i, v in enumerate(values)}
    return Entry(
        origin="here", tier="laptop", labels={"method": method}, metric="m", value=values[0], unit="", by_seed=by_seed, runs=["r"]
    )


finite = st.floats(-1e3, 1e3).map(lambda v: round(v, 3))


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=6))
def test_swapping_the_sides_mirrors_the_verdict(values: list[tuple[float, float]]) -> None:
    a, b = entry("a", [v for v, _ in values]), entry("b", [v for _, v in values])

    def test_of(**threshold: float) -> ClaimTest:
        return ClaimTest(metric="m", of={"method": "a"}, against={"method": "b"}, **threshold)  # type: ignore[arg-type]

    least, most = test_of(difference_at_least=0.0), test_of(difference_at_most=0.0)
    forward = judge_pairing(least, {}, {}, [(a, b)])
    assert judge_pairing(most, {}, {}, [(b, a)]).verdict == forward.verdict
    swapped = judge_pairing(least, {}, {}, [(b, a)])
    assert swapped.estimate == pytest.approx(-(forward.estimate or 0.0), abs=1e-9)
    if abs(forward.low or 0.0) > 1e-9 and abs(forward.high or 0.0) > 1e-9:  # a bound on the threshold is on both claimed sides
        mirror = {"reproduced": "not reproduced", "not reproduced": "reproduced", "inconclusive": "inconclusive"}
        assert swapped.verdict == mirror[forward.verdict]


def test_the_t_interval_is_the_textbook_one() -> None:
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert high - mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


def one_claim(quantifier: str | int, threshold: float) -> TableSpec:
    test = {"metric": "accuracy", "of": {"method": "auto_s"}, "against": {"method": "abadi"}, "quantifier": quantifier}
    return glue(claims=[{"id": "A1", "says": "it is better", "test": test | {"difference_at_least": threshold}}])


@pytest.mark.parametrize(
    ("quantifier", "expected"), [("mean", "reproduced"), ("every", "not reproduced"), (1, "reproduced"), (2, "not reproduced")]
)
def test_settings_are_judged_together_or_each_by_itself(quantifier: str | int, expected: str) -> None:
    """auto_s gains 4 at epsilon 3 and loses 2 at epsilon 8: their mean is a gain."""

    def value(labels: dict[str, str], seed: int, metric: str) -> float:
        gain = {"3": 4.0, "8": -2.0}.get(labels["epsilon"], 0.0) + 0.01 * seed
        return 80 + seed + (gain if labels["method"] == "auto_s" else 0)

    spec = one_claim(quantifier, 0.5)
    judged = verdict(spec, made_up(spec, "laptop", value))
    assert judged.verdict == expected
    decisive = judged.evidence.decisive
    assert decisive.of.get("epsilon") == {"mean": None, "every": "8", 1: "3", 2: "8"}[quantifier]
    assert len(judged.evidence.pairings) == (2 if quantifier in ("every", 2) else 1)
    assert ("ε = 8" in judged.sentence) == (quantifier in ("every", 2))


@pytest.mark.parametrize(
    ("bad", "above", "expected", "message"),
    [
        ("8", 60.0, "reproduced", "left out: at epsilon 8"),  # whole, it would be -0.5 and not reproduced
        ("8", 10.0, "not reproduced", ""),
        ("both", 60.0, "inconclusive", "left out: at epsilon 3"),
    ],
)
def test_a_setting_where_nothing_was_learnt_says_nothing(bad: str, above: float, expected: str, message: str) -> None:
    """At epsilon 8, or at both, every model is as good as chance: that they are equally good is no evidence."""
    test = {"metric": "accuracy", "of": {"method": "auto_s"}, "against": {"method": "abadi"}, "difference_at_least": 0.5}
    test["precondition"] = {"metric": "accuracy", "of": {"method": "abadi"}, "above": above}
    spec = glue(claims=[{"id": "X", "says": "x", "source": "x", "scale": "x", "test": test}])

    def value(labels: dict[str, str], seed: int, metric: str) -> float:
        dead = bad == "both" or labels["epsilon"] == bad
        return (50 if dead else 80) + 0.1 * seed + ((-2.0 if dead else 1.0) if labels["method"] == "auto_s" else 0)

    judged = verdict(spec, made_up(spec, "laptop", value))
    assert (judged.verdict, message in judged.sentence.lower()) == (expected, True)
    assert ("left out" in judged.sentence.lower()) == bool(message)


def test_more_settings_asked_for_than_there_are_decide_nothing() -> None:
    spec = one_claim(3, 0.5)
    judged = verdict(spec, made_up(spec, "laptop", accuracy(1.0)))
    assert judged.verdict == "inconclusive"
    assert "1 more of 3 settings" in judged.sentence


def test_one_that_holds_nowhere_does_not_hold() -> None:
    spec = one_claim(1, 5.0)
    assert verdict(spec, made_up(spec, "laptop", accuracy(1.0))).verdict == "not reproduced"


def test_one_exact_count_decides_and_one_measurement_does_not() -> None:
    spec = glue(seeds=[0])
    stored = made_up(spec, "laptop", accuracy(1.0))
    assert verdict(spec, stored).verdict == "inconclusive"
    for one in stored:
        one.record.metrics[:] = [m.model_copy(update={"kind": "counted"}) for m in one.record.metrics]
    judged = verdict(spec, stored)
    assert judged.verdict == "reproduced"
    assert judged.evidence.decisive.low == judged.evidence.decisive.high

"""Which records stand behind which value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_fakes
from report_fakes import EMBEDDED, REAL, WITHOUT_EPSILON, batch_size, glue, made_up, resolver

from dpbench.errors import DpbenchError
from dpbench.records.schema import Metric, Request
from dpbench.records.store import Stored
from dpbench.report.collect import build_table
from dpbench.report.data import TableData
from dpbench.report.deviations import deviations


def by_seed(labels: dict[str, str], seed: int, metric: str) -> float:
    return 80.0 + seed


def entry(table: TableData, place: tuple[str, str, str], **labels: str) -> Any:
    entries = [e for e in table.entries if e.place == place and labels.items() <= e.labels.items()]
    return entries[0] if entries else None


def test_values_of_every_origin_stand_side_by_side(published: None) -> None:
    spec = glue(cells=[*glue().cells, WITHOUT_EPSILON])
    table = build_table(
        spec,
        "laptop",
        resolver(REAL),
        made_up(spec, "laptop", by_seed) + made_up(spec, "gpu", by_seed),
        made_up(spec, "overnight", by_seed, machine="m1"),
    )
    assert {e.place for e in table.entries} == {
        ("published", "", ""),
        ("here", "laptop", ""),
        ("here", "gpu", ""),
        ("recorded", "overnight", "m1"),
    }
    here = entry(table, ("here", "laptop", ""), method="abadi", epsilon="3")
    assert (here.value, here.spread, here.spread_kind, here.n) == (81.0, 1.0, "standard deviation over 3 seeds", 3)
    assert here.by_seed == {"0": 80.0, "1": 81.0, "2": 82.0}
    assert len(here.runs) == 3
    states = {(c.labels["method"], c.labels["epsilon"], c.labels["model"]): c.state for c in table.cells}
    assert states["abadi", "3", "minilm"] == "reproduced here"
    assert states["abadi", "3", "roberta_base"] == "published only"
    assert states["abadi", "8", "roberta_base"] == "not run"
    assert states["nonprivate", "3", "minilm"] == "skipped: non-private training has no epsilon"
    assert TableData.model_validate_json(table.model_dump_json()) == table


def test_published_values_carry_nothing_of_a_run(published: None) -> None:
    spec = glue()
    table = build_table(spec, "smoke", resolver(EMBEDDED), made_up(spec, "smoke", by_seed, sources=EMBEDDED), [])
    for table_entry in table.entries:
        if table_entry.origin == "published":
            assert (table_entry.synthetic, table_entry.simulated, table_entry.runs, table_entry.by_seed) == (False, False, [], {})
            assert table_entry.source
        else:
            assert table_entry.synthetic


def test_a_record_of_other_versions_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = glue()
    local = made_up(spec, "laptop", by_seed)
    recorded = made_up(spec, "laptop", by_seed, machine="m1")
    monkeypatch.setitem(report_fakes.VERSIONS, "fake", 2)
    table = build_table(spec, "laptop", resolver(REAL), local, recorded)
    assert table.entries == []
    assert len(table.stale) == len(local) + len(recorded)
    assert {s.machine for s in table.stale} == {"", "m1"}
    assert table.stale[0].reason == "settings or versions changed since"
    assert {c.state for c in table.cells} == {"not run"}


def test_a_record_of_another_table_is_neither_used_nor_stale() -> None:
    spec = glue()
    other = made_up(batch_size(), "laptop", lambda *_: 1.0)
    table = build_table(spec, "laptop", resolver(REAL), other, [])
    assert (table.entries, table.stale, table.records) == ([], [], [])


def test_a_run_made_for_another_table_counts_here_too() -> None:
    spec = glue()
    elsewhere = Request(paper="other", table="table", tier="laptop", key="0" * 12, labels={"x": "1"})
    local = made_up(spec, "laptop", by_seed, requests=[elsewhere])
    assert entry(build_table(spec, "laptop", resolver(REAL), local, []), ("here", "laptop", ""), method="auto_s") is not None


def test_records_of_other_data_are_found_but_never_averaged() -> None:
    spec = glue()
    embedded = made_up(spec, "overnight", lambda *_: 10.0, sources=EMBEDDED, machine="m1")
    real = made_up(spec, "overnight", by_seed, machine="m1", seeds=[0])
    table = build_table(spec, "laptop", resolver(REAL), [], embedded + real)
    other_entry = entry(table, ("recorded", "overnight", "m1"), method="abadi", epsilon="3")
    assert (other_entry.value, other_entry.synthetic) == (80.0, False)  # one real seed goes before three synthetic ones
    assert table.stale == []


def test_recorded_results_need_no_sources_of_this_machine() -> None:
    spec = glue()
    table = build_table(spec, "laptop", resolver(EMBEDDED), [], made_up(spec, "overnight", by_seed, machine="m1"))
    assert entry(table, ("recorded", "overnight", "m1")).sources[0] == "dataset sst2: local folder, real"
    assert not entry(table, ("recorded", "overnight", "m1")).synthetic


def test_an_unresolved_source_does_not_hide_recorded_results() -> None:
    spec = glue()

    def broken(kind: str, name: str) -> Any:
        if name == "roberta_base":
            raise DpbenchError("not here")
        return REAL[f"{kind}:{name}"]

    table = build_table(spec, "laptop", broken, [], made_up(spec, "laptop", by_seed, machine="m1"))
    assert entry(table, ("recorded", "laptop", "m1")) is not None


def test_a_value_that_was_not_measured_is_empty_with_its_reason() -> None:
    spec = batch_size()

    def value(labels: dict[str, str], seed: int, metric: str) -> Metric | float:
        if labels["engine"] == "opacus":
            return Metric(name=metric, value=None, unit="", note="skipped: opacus is not installed")
        if labels["engine"] == "ghost":
            return Metric(name=metric, value=None, unit="", note="out of memory")
        return Metric(name=metric, value=5.0, unit="", rounds=[4.0, 5.0, 6.0], low=4.4, high=5.6)

    table = build_table(spec, "laptop", resolver(REAL), made_up(spec, "laptop", value), [])
    empty = entry(table, ("here", "laptop", ""), engine="opacus")
    assert empty.value is None
    assert {c.state for c in table.cells if c.labels["engine"] == "opacus"} == {"skipped: opacus is not installed"}
    assert {c.state for c in table.cells if c.labels["engine"] == "ghost"} == {"skipped: out of memory"}
    full = entry(table, ("here", "laptop", ""), engine="fused")
    assert (full.value, full.n, full.spread, full.spread_kind) == (5.0, 3, None, "20-80 % over 3 rounds")


def test_a_run_of_two_tiers_counts_for_the_one_it_was_made_for() -> None:
    spec = batch_size(tiers={tier: {} for tier in report_fakes.TIERS})
    table = build_table(spec, "laptop", resolver(REAL), [], made_up(spec, "gpu", lambda *_: 1.0, machine="m1"))
    assert {e.place for e in table.entries} == {("recorded", "gpu", "m1")}


def test_a_smoke_value_is_not_a_reproduction() -> None:
    spec = glue()
    table = build_table(spec, "smoke", resolver(REAL), made_up(spec, "smoke", by_seed), [])
    assert "run here (smoke)" in {c.state for c in table.cells}
    assert "reproduced here" not in {c.state for c in table.cells}


def test_deviations_are_read_and_checked(tmp_path: Path) -> None:
    assert deviations("automatic") == []
    path = tmp_path / "benchmarks" / "automatic" / "deviations.yaml"
    path.parent.mkdir()
    path.write_text("- {id: A-1, severity: Critical, fact: something}\n")
    assert deviations("automatic")[0].severity == "critical"
    path.write_text("- {id: A-1, severity: Critical, fakt: something}\n")
    with pytest.raises(DpbenchError, match=r"deviations\.yaml: entry 1: unknown key 'fakt'"):
        deviations("automatic")
    path.write_text("- {id: A-1, severity: note, fact: a}\n- {id: A-1, severity: note, fact: b}\n")
    with pytest.raises(DpbenchError, match="occurs twice"):
        deviations("automatic")


SIXTEEN = [{"method": "nonprivate", "epsilon": "inf"}, {"method": ["abadi", "auto_s"], "epsilon": [3, 8, 16]}]


def _laptop_is_part_of_overnight(**laptop: Any) -> Any:
    """The laptop tier is seed 0 of what overnight runs."""
    small = {"columns": {"model": {"minilm": {}}}}
    other = {tier: small | {"settings": {"tier_steps": i}} for i, tier in enumerate(("smoke", "gpu"), 1)}
    paper = {"columns": {"model": {"roberta_base": {"model": "roberta_base"}}}}
    return glue(tiers={**other, "laptop": small | {"seeds": [0]} | laptop, "overnight": small, "paper": paper})


def _overnight(spec: Any) -> list[Stored]:
    """Its records, of which those of seed 0 serve the laptop tier too."""
    fake_records = made_up(spec, "overnight", by_seed, machine="m1")
    for stored in fake_records:
        if stored.record.config["seed"] == 0:
            stored.record.requests.extend(r.model_copy(update={"tier": "laptop"}) for r in list(stored.record.requests))
    return fake_records


def test_a_tier_within_another_is_not_shown_again(published: None) -> None:
    spec = _laptop_is_part_of_overnight()
    recorded = _overnight(spec)
    places = {e.place for e in build_table(spec, "gpu", resolver(REAL), [], recorded).entries}
    assert places == {("published", "", ""), ("recorded", "overnight", "m1")}
    local_stored = [Stored(s.record, s.path, None) for s in recorded]
    places = {e.place for e in build_table(spec, "laptop", resolver(REAL), local_stored, []).entries}
    assert places == {("published", "", ""), ("here", "laptop", ""), ("here", "overnight", "")}, (
        "what was asked for always stands"
    )


def test_a_tier_with_a_record_of_its_own_is_shown(published: None) -> None:
    spec = _laptop_is_part_of_overnight(rows={"epsilon": ["inf", 3, 8, 16]}, cells=SIXTEEN)
    recorded = _overnight(spec)
    there = {s.record.run for s in recorded}
    recorded += [s for s in made_up(spec, "laptop", by_seed, machine="m1") if s.record.run not in there]
    assert len(recorded) > len(there)
    places = {e.place for e in build_table(spec, "gpu", resolver(REAL), [], recorded).entries}
    assert places == {("published", "", ""), ("recorded", "overnight", "m1"), ("recorded", "laptop", "m1")}

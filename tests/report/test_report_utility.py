"""What the utility table needs of the report: a text where there is no value, and curves over steps."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from pydantic import ValidationError
from report_fakes import REAL, glue, made_up, privacy, resolver

from dpbench.records.schema import Metric
from dpbench.report.claims import judge
from dpbench.report.collect import build_table
from dpbench.report.curves import curves_of
from dpbench.report.html import table_fragment
from dpbench.report.page import render
from dpbench.report.plots import draw
from dpbench.report.tables import to_csv, to_latex, to_markdown
from dpbench.spec.models import Plot

CURVES = {"name": "curves", "title": "Over steps", "kind": "curves", "metric": "accuracy", "x": "epsilon", "series": "method"}
WHY = "FLASH-2: no finite epsilon"


def none_for_abadi(labels: dict[str, str], seed: int, metric: str) -> Metric | float:
    if labels["method"] == "abadi":
        return Metric(name=metric, value=None, text="none", unit="%", note=WHY)
    return 80.0 + seed


def table(value: Any = none_for_abadi, **over: Any) -> Any:
    spec = glue(plots=[CURVES])
    return build_table(spec, "laptop", resolver(REAL), made_up(spec, "laptop", value, **over), [])


def test_none_is_printed_as_text_with_the_reason() -> None:
    table_data = table(privacy=privacy("nominal"))
    markdown = to_markdown(table_data)
    assert "none\\*" in markdown
    assert f"none: {WHY}." in markdown
    assert f"skipped: {WHY}" not in markdown
    assert "none$^{*}$" in to_latex(table_data)
    fragment = table_fragment(table_data)
    assert ">none<sup>*</sup></a>" in fragment
    rows = [r for r in csv.DictReader(io.StringIO(to_csv(table_data))) if r["method"] == "abadi"]
    assert {(r["value"], r["text"], r["note"]) for r in rows} == {("", "none", WHY)}


def test_a_claim_on_none_is_not_run_and_says_why() -> None:
    (claim,) = judge(table())
    assert claim.verdict == "not run"
    assert WHY in claim.sentence


def test_a_text_stands_only_where_there_is_no_value() -> None:
    with pytest.raises(ValidationError, match="printed as that value"):
        Metric(name="epsilon", value=1.0, unit="", text="none")
    assert "text" not in Metric(name="epsilon", value=1.0, unit="").model_dump()


def test_an_epsilon_that_does_not_exist_is_none_on_the_page() -> None:
    nowhere = privacy("nominal").model_copy(update={"epsilon": None, "epsilon_rdp": None, "reasons": [WHY]})
    table_data = table(privacy=nowhere)
    text = render([table_data], [], {}, "here")
    assert '<td class="n">none</td>' in text
    assert "ε none by PLD, none by RDP" in text


def level(labels: dict[str, str], seed: int, metric: str) -> float:
    return 80.0 + seed


def test_curves_are_means_over_seeds() -> None:
    table_data = table(level, facts={"curve": [[0, 6.0], [10, 5.0], [20, 4.5]]})
    assert curves_of(table_data, table_data.entries[0]) == [(0.0, 6.0), (10.0, 5.0), (20.0, 4.5)]
    assert len(table_data.entries[0].runs) == 3
    for info in table_data.records:
        info.record["facts"]["curve"][1][1] += info.seed
    assert curves_of(table_data, table_data.entries[0])[1] == (10.0, 6.0)


def test_a_panel_for_each_epsilon_holds_the_line_without_one() -> None:
    table_data = table(level, facts={"curve": [[0, 6.0], [10, 5.0]]})
    picture = draw(table_data, Plot(**CURVES))
    assert picture == draw(table_data, Plot(**CURVES))
    root = ElementTree.fromstring(picture)
    words = [t.text or "" for t in root.iter() if t.tag.endswith("text")]
    assert [w for w in words if w.startswith("ε")] == ["ε = 3", "ε = 8"]
    assert words.count("here (laptop)") == 2
    assert {"nonprivate", "abadi", "auto_s"} <= set(words)
    per_panel = [
        len([g for g in axes if g.get("id", "").startswith("line2d")])
        for axes in root.iter()
        if (axes.get("id") or "").startswith("axes_")
    ]
    assert per_panel == [3, 3]


def test_a_row_with_and_without_epsilon_is_two_named_lines() -> None:
    table_data = table(level, facts={"curve": [[0, 6.0], [10, 5.0]]})
    assert "abadi, ε = ∞" not in draw(table_data, Plot(**CURVES)).decode()
    entries = [
        e.model_copy(update={"labels": e.labels | {"method": "abadi"}}) if e.labels["epsilon"] == "inf" else e
        for e in table_data.entries
    ]
    picture = draw(table_data.model_copy(update={"entries": entries}), Plot(**CURVES))
    words = [t.text or "" for t in ElementTree.fromstring(picture).iter() if t.tag.endswith("text")]
    assert [w for w in words if "abadi" in w or "auto_s" in w] == ["abadi", "abadi, ε = ∞", "auto_s"]


def test_records_without_a_curve_draw_nothing() -> None:
    assert b"not run" in draw(table(level), Plot(**CURVES))

"""Columns that stay though no run fills them, how many rows were seen, and heat maps."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_fakes import EMBEDDED, REAL, glue, made_up, resolver

from dpbench import plugins
from dpbench.report.collect import build_table
from dpbench.report.data import TableData
from dpbench.report.layout import blocks
from dpbench.report.page import render
from dpbench.report.plots import draw
from dpbench.report.rows import rows_used
from dpbench.report.tables import to_markdown

FACTS = {"train_rows": 1000, "evaluated_rows": 872}
HEATMAP = {"name": "map", "title": "Over both", "kind": "heatmap", "metric": "accuracy", "x": "epsilon", "series": "method"}
REST = {"model": "minilm", "evaluate_on": "train_rest"}
WHY = "no run evaluates on it"


def values(labels: dict[str, str], seed: int, metric: str) -> float:
    return 80.0 + seed + len(labels["method"])


def table(sources: Any = REAL, **over: Any) -> Any:
    spec = glue(**over)
    return build_table(spec, "laptop", resolver(sources), made_up(spec, "laptop", values, sources, facts=FACTS), [])


def test_rows_are_said_with_those_of_the_whole_dataset() -> None:
    table_data = table()
    assert rows_used(table_data) == ["here (laptop), sst2: trained on 1,000 of 67,349 rows, evaluated on 872"]
    assert "trained on 1,000 of 67,349 rows" in to_markdown(table_data)
    assert "trained on 1,000 of 67,349 rows" in render([table_data], [], {}, "here")


def test_generated_rows_are_not_called_a_part_of_real_ones() -> None:
    assert rows_used(table(EMBEDDED)) == ["here (laptop), sst2: trained on 1,000 rows, evaluated on 872"]


def test_what_is_special_about_a_copy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.discover("dataset")["sst2"].extra, "notes", {"local": "of another split"})
    assert rows_used(table())[0].endswith("evaluated on 872 (of another split)")


def test_qqp_says_that_its_local_validation_split_is_not_one() -> None:
    assert "not the GLUE validation number" in plugins.discover("dataset")["qqp"].extra["notes"]["local"]


def columns_of(table_data: Any) -> set[str]:
    (block,) = blocks(table_data)
    return {column.labels["task"] for column in block.columns}


@pytest.mark.parametrize("kept", [True, False])
def test_a_column_without_values_stays_if_the_paper_has_it(kept: bool) -> None:
    blocks_of_both = [block | {"task": "sst2"} for block in glue().cells]
    blocks_of_both += [block | {"task": "other", "why": WHY} for block in glue().cells] if kept else []
    columns = {"task": {"sst2": {"dataset": "sst2"}, "other": {"dataset": "sst2"}}, "model": {"minilm": None}}
    table_data = table(columns=columns, cells=blocks_of_both)
    assert columns_of(table_data) == ({"sst2", "other"} if kept else {"sst2"})
    (block,) = blocks(table_data)
    assert [row for row in block.rows if row["method"] == "nonprivate"] == [{"method": "nonprivate", "epsilon": "inf"}]
    assert any(WHY in note for note in block.footnotes) == kept


def test_a_heat_map_has_a_cell_and_a_text_for_each_value() -> None:
    table_data = table(plots=[HEATMAP])
    svg = draw(table_data, table_data.plots[0]).decode()
    assert svg == draw(table_data, table_data.plots[0]).decode()
    count = len([e for e in table_data.entries if e.value is not None])
    assert len(re.findall(r"fill: #[0-9a-f]{6}", svg)) >= count
    for entry in table_data.entries:
        assert f"{entry.value:.1f}" in svg
    assert "<image" not in svg
    assert "<title>Over both</title>" in svg


def test_a_heat_map_of_one_value_has_a_colour_too() -> None:
    table_data = table(plots=[HEATMAP], rows={"method": ["auto_s"], "epsilon": [3]})
    assert "81.0" in draw(table_data, table_data.plots[0]).decode() or "87.0" in draw(table_data, table_data.plots[0]).decode()


SCATTER = HEATMAP | {"kind": "scatter", "x": "training_seconds"}
TIMED = {n: {"unit": u, "better": b} for n, u, b in (("accuracy", "%", "higher"), ("training_seconds", "s", "lower"))}


def lines_of(svg: str) -> int:
    """Lines through points: paths of the lines' width, of which the legend has one more each."""
    return len(re.findall(r"stroke-width: 1\.2", svg))


def moved(table_data: TableData, **across: float) -> TableData:
    """With other values across, by epsilon."""
    across_values = {e.labels["epsilon"]: across.get("at", float(e.labels["epsilon"])) for e in table_data.entries}
    entries = [
        e.model_copy(update={"value": across_values[e.labels["epsilon"]]}) if e.metric == "training_seconds" else e
        for e in table_data.entries
    ]
    return table_data.model_copy(update={"entries": entries})


def test_a_scatter_draws_a_line_a_series_through_complete_cells() -> None:
    table_data = moved(table(plots=[SCATTER], metrics=TIMED, rows={"method": ["abadi", "auto_s"], "epsilon": [3, 8]}))
    svg = draw(table_data, table_data.plots[0]).decode()
    assert svg == draw(table_data, table_data.plots[0]).decode()
    assert "training seconds (s)" in svg
    assert lines_of(svg) == 2 * len({e.labels["method"] for e in table_data.entries}) > 0
    untimed = table_data.model_copy(
        update={"entries": [e for e in table_data.entries if (e.metric, e.labels["method"]) != ("training_seconds", "abadi")]}
    )
    assert lines_of(draw(untimed, table_data.plots[0]).decode()) == lines_of(svg) - 2


def test_cells_of_one_x_are_markers_with_their_names_and_no_line() -> None:
    table_data = table(plots=[SCATTER], metrics=TIMED, rows={"method": ["abadi", "auto_s"], "epsilon": [3, 8]})
    plain = draw(moved(table_data), table_data.plots[0]).decode()
    svg = draw(moved(table_data, at=9.0), table_data.plots[0]).decode()
    assert lines_of(svg) == 0 < lines_of(plain)
    assert all(text in svg and text not in plain for text in ("ε = 3", "ε = 8"))


def test_a_markers_area_is_a_metric() -> None:
    table_data = table(plots=[SCATTER | {"area": "training_seconds"}], metrics=TIMED)
    assert draw(table_data, table_data.plots[0]) != draw(table_data, table_data.plots[0].model_copy(update={"area": None}))
    with pytest.raises(ValueError, match="speed"):
        glue(plots=[SCATTER | {"area": "speed"}], metrics=TIMED)
    with pytest.raises(ValueError, match="area: a plot of kind heatmap has none"):
        glue(plots=[HEATMAP | {"area": "training_seconds"}], metrics=TIMED)


def test_a_scatter_needs_its_metric_and_refuses_an_axis() -> None:
    table_data = table(plots=[SCATTER], metrics=TIMED)
    without = table_data.model_copy(update={"entries": [e for e in table_data.entries if e.metric == "accuracy"]})
    assert b"not run" in draw(without, table_data.plots[0])
    for kind, x in (("scatter", "epsilon"), ("heatmap", "training_seconds")):
        with pytest.raises(ValueError, match=x):
            glue(plots=[SCATTER | {"kind": kind, "x": x}], metrics=TIMED)


def test_rows_of_the_train_split_are_not_called_evaluated() -> None:
    assert rows_used(table(settings=REST)) == [
        "here (laptop), sst2: trained on 1,000 of 67,349 rows, evaluated on 872 others of the train split"
    ]


def test_a_heat_map_of_nothing_says_so() -> None:
    spec = glue(plots=[HEATMAP])
    table_data = build_table(spec, "laptop", resolver(REAL), [], [])
    assert b"not run" in draw(table_data, table_data.plots[0])

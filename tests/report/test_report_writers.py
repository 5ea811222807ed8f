"""What people see: files, plots and the page."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_fakes import EMBEDDED, REAL, TIERS, batch_size, glue, made_up, privacy, resolver

from dpbench.records.schema import Metric
from dpbench.report.claims import judge
from dpbench.report.collect import build_table
from dpbench.report.data import TableData
from dpbench.report.html import table_fragment
from dpbench.report.layout import blocks
from dpbench.report.long import COLUMNS, long_frame, write_long
from dpbench.report.page import render
from dpbench.report.plots import draw
from dpbench.report.tables import escape_latex, to_csv, to_latex, to_markdown, write_tables


def accuracy(labels: dict[str, str], seed: int, metric: str) -> float:
    return 80.0 + seed


def speed(labels: dict[str, str], seed: int, metric: str) -> Metric:
    if labels["engine"] == "opacus":
        return Metric(name=metric, value=None, unit="x", note="skipped: opacus is not installed")
    level = float(labels["batch_size"]) * 100
    return Metric(name=metric, value=level, unit="x", rounds=[level, level + 1], low=level, high=level + 1)


@pytest.fixture
def tables(published: None) -> list[TableData]:
    first, second = glue(), batch_size()
    local = made_up(first, "laptop", accuracy, sources=EMBEDDED, privacy=privacy("nominal"), warnings=["<cut> & padded"])
    recorded = made_up(first, "overnight", accuracy, machine="m1", privacy=privacy())
    speeds = made_up(second, "laptop", speed)
    again = made_up(second, "laptop", speed, machine="m2")  # the same runs on another machine
    return [build_table(spec, "laptop", resolver(EMBEDDED), local + speeds, recorded + again) for spec in (first, second)]


def page(tables: list[TableData]) -> str:
    svgs = {(t.paper, t.table, p.name): draw(t, p).decode() for t in tables for p in t.plots}
    return render(tables, [j for t in tables for j in judge(t)], svgs, "here")


class Page(HTMLParser):
    """Collects ids, links, loaded things and texts of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.hrefs: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href"):
                self.hrefs.append(value or "")
            elif name in ("src", "srcset", "data", "action", "poster"):
                self.loads.append(value or "")


def test_the_page_stands_alone(tables: list[TableData]) -> None:
    text = page(tables)
    parsed_page = Page(text)
    assert parsed_page.loads == []
    assert not {"script", "link", "iframe", "img", "object"} & set(parsed_page.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    outside = {h for h in parsed_page.hrefs if not h.startswith("#")}
    assert outside == {"https://arxiv.org/abs/2206.07136", "https://arxiv.org/abs/2507.01154"}


def test_every_link_within_the_page_leads_somewhere(tables: list[TableData]) -> None:
    parsed_page = Page(page(tables))
    ids = set(parsed_page.ids)
    assert len(ids) == len(parsed_page.ids)
    assert {h[1:] for h in parsed_page.hrefs if h.startswith("#")} <= ids
    records = {f"record-{r.run}" for t in tables for r in t.records}
    assert records <= ids
    assert records == {h[1:] for h in parsed_page.hrefs if h.startswith("#record-")}


def test_every_number_leads_to_its_record_or_document(tables: list[TableData]) -> None:
    cells = re.findall(r'<td class="(published|recorded|here)">(.*?)</td>', page(tables), flags=re.DOTALL)
    assert len(cells) > 40
    for origin, cell in cells:
        assert re.match(r'<a href="#source-' if origin == "published" else r'<a href="#record-', cell)


def test_published_columns_hold_published_values_only(tables: list[TableData]) -> None:
    for block in (b for t in tables for b in blocks(t)):
        for line in block.slots:
            for column, slot in zip(block.columns, line, strict=True):
                if slot.entry is not None:
                    assert slot.entry.place == column.place
                    if column.place[0] == "published":
                        assert slot.marks == ""
                    if slot.entry.synthetic:
                        assert "†" in slot.marks


def test_an_empty_cell_is_a_dash_with_a_reason_never_0(tables: list[TableData]) -> None:
    empty = [s for t in tables for b in blocks(t) for line in b.slots for s in line if s.entry is None]
    assert empty
    assert all(s.text == "–" and s.why for s in empty)
    whys = {s.why for s in empty}
    assert {"not read off the paper", "skipped: opacus is not installed"} <= whys
    rows = list(csv.DictReader(io.StringIO(to_csv(tables[1]))))
    assert {r["value"] for r in rows if r["engine"] == "opacus"} == {""}
    assert "| 0" not in to_markdown(tables[1])
    assert "no value of this metric has been read off Table 1" in to_markdown(tables[1])


def test_cells_of_one_mechanism_share_a_row(tables: list[TableData]) -> None:
    """Five private cells of glue are one row a place, which unfolds to its cells; each leads to its record."""
    text = page(tables)
    part = text[text.index('<table class="epsilon">') :]
    part = part[: part.index("</table>")]
    cells = {(e.labels["method"], e.labels["epsilon"]) for e in tables[0].entries if e.privacy is not None}
    assert part.count("<tr>") == 1 + 2  # head, here and recorded
    assert part.count(f"<summary>{len(cells)} cells</summary>") == 2
    assert part.count('href="#record-') == 2 * len(cells)


def test_what_is_private_and_nominal_says_so(tables: list[TableData]) -> None:
    assert "80.0" not in to_markdown(tables[0])
    assert "81.0†\\*" in to_markdown(tables[0])
    text = page(tables)
    assert "fixed batches accounted as Poisson" in text
    assert "synthetic" in text
    assert "&lt;cut&gt; &amp; padded" in text
    assert "<cut>" not in text


def test_csv_gives_back_what_went_in(tables: list[TableData]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(tables[0]))))
    assert len(rows) == len(tables[0].entries)
    for row, entry in zip(rows, tables[0].entries, strict=True):
        assert float(row["value"]) == entry.value
        assert {a: row[a] for a in tables[0].axes} == entry.labels
        assert json.loads(row["runs"] or "[]") == entry.runs
        assert json.loads(row["by_seed"] or "{}") == entry.by_seed
        assert row["privacy_validity"] == (entry.privacy.validity if entry.privacy else "")
        assert row["source"] == entry.source


def test_latex_is_escaped(tables: list[TableData]) -> None:
    text = to_latex(tables[0])
    assert r"100 \% \& more" in text
    assert r"auto\_s" in text
    assert r"$\pm$" in text
    assert "†" not in text
    assert escape_latex(r"a\b{c}_%$#&~^") == (r"a\textbackslash{}b\{c\}\_\%\$\#\&\textasciitilde{}\textasciicircum{}")
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert line.count(" & ") >= 2
    widths = {line.count("&") - line.count(r"\&") for line in text.splitlines() if line.startswith(("abadi", "auto"))}
    assert len(widths) == 1


def test_all_four_files_are_written(tables: list[TableData], tmp_path: Path) -> None:
    written_files = write_tables(tables[0], tmp_path / "tables")
    assert [p.name for p in written_files] == [f"glue_base.{e}" for e in ("csv", "md", "tex", "html")]
    assert all(p.stat().st_size > 200 for p in written_files)


def test_plots_are_the_same_twice_and_hold_text(tables: list[TableData]) -> None:
    for table in tables:
        plot = table.plots[0]
        first = draw(table, plot)
        assert first == draw(table, plot)
        root = ElementTree.fromstring(first)
        words = " ".join(t.text or "" for t in root.iter() if t.tag.endswith(("text", "tspan")))
        assert "here (laptop)" in words
        assert b"<date>" not in first.lower()
    assert b"Accuracy by &lt;epsilon&gt;" in draw(tables[0], tables[0].plots[0])
    assert b"batch size" in draw(tables[1], tables[1].plots[0])


def test_a_plot_of_nothing_says_so() -> None:
    spec = batch_size()
    table = build_table(spec, "laptop", resolver(REAL), [], [])
    assert b"not run" in draw(table, spec.plots[0])


def test_a_page_of_nothing_says_so() -> None:
    tables = [build_table(spec, "laptop", resolver(REAL), [], []) for spec in (glue(), batch_size())]
    text = page(tables)
    assert "Nothing has been run for this table yet." in text
    assert "There are none yet." in text


def test_the_long_table_has_a_row_for_each_metric(tmp_path: Path) -> None:
    spec = glue()
    stored: list[Any] = made_up(spec, "laptop", accuracy, privacy=privacy(), mechanism={"sampling": {"kind": "poisson"}})
    stored += made_up(batch_size(), "laptop", speed, machine="m1")
    frame = long_frame(stored)
    assert len(frame) == sum(len(s.record.metrics) for s in stored)
    write_long(frame, tmp_path / "long.csv", tmp_path / "long.parquet")
    table = pq.read_table(tmp_path / "long.parquet")
    assert table.schema.metadata[b"dpbench_long_schema"] == b"1"
    assert table.column_names == COLUMNS
    assert table.num_rows == len(frame)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "long.parquet"), frame)
    with (tmp_path / "long.csv").open(newline="") as handle:
        back = list(csv.DictReader(handle))
    assert (back[0]["epsilon"], back[0]["sampler"], back[0]["torch"]) == ("2.97", "poisson", "2.13.0")
    assert back[0]["requests"] == '["automatic/glue_base/laptop"]'
    assert {r["value"] for r in back if "opacus" in r["labels"]} == {""}
    assert table.column("value").null_count == frame["value"].isna().sum() > 0


def test_the_long_table_of_nothing_has_its_columns_and_types(tmp_path: Path) -> None:
    write_long(long_frame([]), tmp_path / "long.csv", tmp_path / "long.parquet")
    assert (tmp_path / "long.csv").read_text() == ",".join(COLUMNS) + "\n"
    schema = pq.read_schema(tmp_path / "long.parquet")
    types = {"seed": pa.int64(), "rounds": pa.int64(), "synthetic": pa.bool_(), "value": pa.float64(), "run": pa.string()}
    assert {name: schema.field(name).type for name in types} == types


def test_tiers_that_share_their_runs_are_one_column() -> None:
    """The same settings at every tier are the same runs: shown as the tier that was asked for, not five times."""
    spec = batch_size(tiers={tier: {} for tier in TIERS})
    stored = made_up(spec, "laptop", lambda labels, seed, metric: 1.0)
    for tier in ("laptop", "overnight"):
        table = build_table(spec, tier, resolver(REAL), stored, [])
        columns = blocks(table)[0].columns
        assert [column.place for column in columns] == [("here", tier, "")] * 4


def test_where_all_values_come_from_is_said_once() -> None:
    spec = batch_size()
    here = made_up(spec, "laptop", lambda labels, seed, metric: 1.0)
    alone = build_table(spec, "laptop", resolver(REAL), here, [])
    text = table_fragment(alone)
    assert text.count(f"All values: {blocks(alone)[0].columns[0].place_text}.") == len(blocks(alone))
    assert 'class="place' not in text
    other = made_up(spec, "laptop", lambda labels, seed, metric: 2.0, machine="m1")
    both = build_table(spec, "laptop", resolver(REAL), here, other)
    assert len({column.place for column in blocks(both)[0].columns}) == 2
    assert "All values" not in table_fragment(both)
    assert 'class="place' in table_fragment(both)


def test_samples_of_text_are_shown_with_what_the_record_has(tables: list[TableData]) -> None:
    sample = {"place": "best", "index": 7, "output": "<Written> text", "bleu": 61.25}
    record = tables[0].records[0].record
    record["facts"] = {"samples": [sample | {"input": "name : Mill", "references": ["one text", "another"]}]}
    shown = re.sub("<pre>.*?</pre>", "", page(tables), flags=re.DOTALL)
    for part in ("&lt;Written&gt; text", "61.2", "name : Mill", "one text<br>another", "<th>references</th>"):
        assert part in shown
    record["facts"] = {"samples": [sample]}
    shown = re.sub("<pre>.*?</pre>", "", page(tables), flags=re.DOTALL)
    assert "&lt;Written&gt; text" in shown
    assert "inputs and references stay on the machine" in shown
    assert "<th>references</th>" not in shown


def test_every_setting_is_shown_with_whose_it_is() -> None:
    """Settings of the tier, of an axis value and of single cells; what nobody has stated the origin of says so."""
    spec = glue(
        overrides=[{"where": {"method": ["abadi", "auto_s"], "epsilon": "3"}, "settings": {"optimizer": {"learning_rate": 0.25}}}]
    )
    text = render([build_table(spec, "laptop", resolver(REAL), made_up(spec, "laptop", accuracy), [])], [], {}, "here")
    shown = re.findall(r'<th scope="row"><code>([^<]*)</code></th><td>([^<]*)</td><td>([^<]*)</td>', text)
    assert ("optimizer.name", "adamw", "the paper&#39;s") in shown
    assert ("method abadi or auto_s, epsilon 3: optimizer.learning_rate", "0.25", "the paper&#39;s") in shown
    assert ("epsilon 8: epsilon", "8", "not stated") in shown

"""Texts of records in files that other programs read: a spreadsheet computes nothing of them, Markdown and LaTeX print them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from report_fakes import EMBEDDED, glue, made_up, resolver

from dpbench.records.schema import Metric
from dpbench.records.store import LeftOut
from dpbench.report.cells import cell
from dpbench.report.collect import build_table
from dpbench.report.long import long_frame, write_long
from dpbench.report.page import render
from dpbench.report.tables import escape_latex, to_csv, to_latex, to_markdown

FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1+1",
    "＝1+1",
    "-",
    "--1",
    "=cmd|'/C calc'!A0",
    "+inf+1",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_compute_is_a_text(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "value", ["-1.5", "+3", "-1e-5", "-.5", "-inf", "", "a=b", "1+1", "–", "−1", "auto_s", 'x"=1', -1.5, 3, None, True]
)
def test_numbers_and_plain_texts_stay_as_they_are(value):
    assert cell(value) is value


def hostile(labels: dict[str, str], seed: int, metric: str) -> Metric:
    return Metric(name=metric, value=-1.5 - seed, unit="=1+1", note="@note")


def test_no_cell_of_any_csv_begins_with_a_formula(tmp_path: Path, published: None):
    local = made_up(glue(), "laptop", hostile, sources=EMBEDDED, warnings=["=WEBSERVICE(1)"])
    write_long(long_frame(local), tmp_path / "long.csv", tmp_path / "long.parquet")
    table = build_table(glue(), "laptop", resolver(EMBEDDED), local, [])
    texts = [(tmp_path / "long.csv").read_text(encoding="utf-8"), to_csv(table)]
    cells = [text for csv_text in texts for row in csv.reader(io.StringIO(csv_text)) for text in row]
    assert "'=1+1" in cells
    assert {"-1.5", "-2.5"} <= set(cells)
    starts = [text for text in cells if text.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert starts
    assert all(float(text) < 0 for text in starts)


def test_markdown_and_latex_print_what_stands_there(published: None):
    spec = glue(title="[a](javascript:b) `c` <d> | e\nf_g $h$ \\i # 100 %")
    table = build_table(spec, "laptop", resolver(EMBEDDED), [], [])
    first = to_markdown(table).splitlines()[0]
    assert first == r"# \[a\](javascript:b) \`c\` &lt;d> \| e f\_g $h$ \\i # 100 %"
    assert escape_latex("a\nb\r$") == r"a b \$"
    assert "\\textbackslash{}i" in to_latex(table)


def test_the_page_names_what_was_left_out_once_and_escapes_it(published: None):
    item = LeftOut(run="0" * 12, where="results/recorded/m/000000000000/record.json", why="seconds: <script>alert(1)</script>")
    one = build_table(glue(), "laptop", resolver(EMBEDDED), [], [], left_out=[item])
    text = render([one, one], [], {}, "here")
    assert text.count(item.where) == 1
    assert "<script>" not in text
    assert "Left out" not in render([build_table(glue(), "laptop", resolver(EMBEDDED), [], [])], [], {}, "here")

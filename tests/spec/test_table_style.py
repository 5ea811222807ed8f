"""Tables are read by people first: files and lines stay short, and no fragment is left over."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from dpbench.spec.tables import all_tables, fragments_of, path_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LONGEST, MEDIAN, WIDEST = 200, 70, 120


@pytest.fixture(scope="module")
def tables():
    return [path_of(spec) for spec in all_tables()]


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_no_table_is_long(tables):
    assert {path.name: len(lines_of(path)) for path in tables if len(lines_of(path)) > LONGEST} == {}


def test_half_of_the_tables_are_short(tables):
    assert statistics.median(len(lines_of(path)) for path in tables) <= MEDIAN


def test_no_line_is_wide():
    lines = [(path, number, line) for path in BENCHMARKS.rglob("*.yaml") for number, line in enumerate(lines_of(path), 1)]
    assert [f"{path.relative_to(BENCHMARKS)}:{number}" for path, number, line in lines if len(line) > WIDEST] == []


def test_every_fragment_is_included_by_a_table(tables):
    included = {fragment for path in tables for fragment in fragments_of(path)}
    assert {path.stem for path in (BENCHMARKS / "_shared").glob("*.yaml")} == {path.stem for path in included}


def test_every_fragment_begins_with_what_it_is():
    assert [path.name for path in (BENCHMARKS / "_shared").glob("*.yaml") if not lines_of(path)[0].startswith("# ")] == []

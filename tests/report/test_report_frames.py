"""A table as a DataFrame: its columns and their types, unknown values, and where it is read from."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from report_fakes import EMBEDDED, glue, made_up, privacy, resolver

from dpbench.errors import DpbenchError
from dpbench.report import frame
from dpbench.report.collect import build_table
from dpbench.report.data import TableData
from dpbench.report.tables import to_csv

REPOSITORY = Path(__file__).resolve().parents[2]


def accuracy(labels: dict[str, str], seed: int, metric: str) -> float:
    return 80.0 + seed


@pytest.fixture
def table(published: None) -> TableData:
    stored = made_up(glue(), "laptop", accuracy, sources=EMBEDDED, privacy=privacy("nominal"))
    return build_table(glue(), "laptop", resolver(EMBEDDED), stored, [])


def test_a_frame_has_a_typed_row_for_each_entry(table: TableData) -> None:
    values = frame(table)
    assert len(values) == len(table.entries)
    dtypes = {"value": "Float64", "n": "Int64", "synthetic": "boolean", "method": "string", "privacy_epsilon": "Float64"}
    assert {name: str(values[name].dtype) for name in dtypes} == dtypes
    for (_, row), entry in zip(values.iterrows(), table.entries, strict=True):
        assert row["value"] == entry.value
        assert {axis: row[axis] for axis in table.axes} == entry.labels
        assert (row["by_seed"], row["runs"], row["sources"]) == (entry.by_seed, entry.runs, entry.sources)
        assert row["privacy_reasons"] is (entry.privacy.reasons if entry.privacy else pd.NA)


def test_an_unknown_value_is_missing_and_never_0(table: TableData) -> None:
    published = frame(table).query("origin == 'published'")
    assert len(published) > 0
    for name in ("n", "spread", "privacy_epsilon", "privacy_validity"):
        assert published[name].isna().all()


def test_a_table_without_entries_has_all_columns(table: TableData) -> None:
    empty = frame(table.model_copy(update={"entries": []}))
    assert list(empty.columns) == list(frame(table).columns)
    assert to_csv(table.model_copy(update={"entries": []})) == ",".join(empty.columns) + "\n"


def test_the_csv_writes_each_type_as_python_does(table: TableData) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    texts = {name: {row[name] for row in rows} for name in rows[0]}
    assert texts["synthetic"] == {"true", "false"}
    assert texts["n"] == {"3", ""}
    assert "81.0" in texts["value"]
    assert texts["privacy_delta"] == {"1e-05", ""}
    assert not {"<NA>", "nan", "None"} & set().union(*texts.values())


def test_an_axis_named_as_another_column_keeps_its_labels(table: TableData) -> None:
    entries = [e.model_copy(update={"labels": {"n": "7"}}) for e in table.entries]
    values = frame(table.model_copy(update={"rows": ["n"], "columns": [], "entries": entries}))
    assert set(values["axis_n"]) == {"7"}
    assert values["n"].dropna().tolist() == [e.n for e in entries if e.n]


def test_a_built_table_is_loaded_by_its_name(table: TableData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    path = tmp_path / "results" / "tables" / f"{table.name}.json"
    with pytest.raises(DpbenchError, match=path.name) as error:
        frame(table.name)
    assert error.value.hint == "make the table first"
    path.parent.mkdir(parents=True)
    path.write_text(table.model_dump_json())
    pd.testing.assert_frame_equal(frame(table.name), frame(table))


def test_neither_the_command_line_nor_a_plan_imports_pandas() -> None:
    code = (
        "import sys, dpbench.cli, dpbench.cli.verbs.results, dpbench.report.commands, dpbench.execution.runner;"
        "from dpbench.execution.study import config_of, study; study(config_of({})); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0

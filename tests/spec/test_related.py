"""Values of other papers: shown apart, each with its source."""

from __future__ import annotations

import pytest

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.spec.related import related
from dpbench.spec.tables import load_table

HEAD = "metric,model,method,value,unit,note,source\n"


@pytest.fixture
def spec(tmp_path, monkeypatch):
    (tmp_path / "flashdp" / "related").mkdir(parents=True)
    table_spec = load_table("flashdp", "batch_size")
    monkeypatch.setattr(paths, "benchmarks", lambda: tmp_path)
    return table_spec


def write(tmp_path, text):
    (tmp_path / "flashdp" / "related" / "bk_figure4.csv").write_text(HEAD + text, encoding="utf-8")


def test_methods_stand_side_by_side_and_none_is_invented(spec, tmp_path):
    write(
        tmp_path, "throughput,GPT2,A,5,samples/s,,a paper\nthroughput,GPT2,B,,samples/s,out of memory,a paper\nspeed,X,A,1,m,,b\n"
    )
    (related_method,) = related(spec)
    assert related_method.columns == ["metric", "model", "A", "B"]
    assert related_method.rows == [["throughput (samples/s)", "GPT2", "5", "out of memory"], ["speed (m)", "X", "1", ""]]
    assert related_method.sources == ["a paper", "b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("throughput,GPT2,A,5,samples/s,,\n", "without a source"),
        ("throughput,GPT2,A,many,samples/s,,a paper\n", "is not a number"),
        ("throughput,GPT2,A,,samples/s,,a paper\n", "neither value nor note"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(spec, tmp_path, text, says):
    write(tmp_path, text)
    with pytest.raises(DpbenchError, match=f"line 2: .*{says}"):
        related(spec)


def test_a_missing_file_or_column_is_an_error(spec, tmp_path):
    with pytest.raises(DpbenchError, match="no such file"):
        related(spec)
    (tmp_path / "flashdp" / "related" / "bk_figure4.csv").write_text("metric,value\n", encoding="utf-8")
    with pytest.raises(DpbenchError, match="column 'method' is missing"):
        related(spec)


def test_table_1_names_them_as_another_papers():
    (related_method,) = related(load_table("flashdp", "batch_size"))
    assert "not FlashDP's" in related_method.says
    assert ["throughput (samples/s)", "GPT2", "E2E", "100", "341", "274", "209", "out of memory"] in related_method.rows

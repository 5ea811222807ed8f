"""A record that does not hold is named and left out; it ends no table and no report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from example_records import FAULTS, put, record, sound, text_of

from dpbench.cli import main
from dpbench.execution.study import config_of, resolver, study_at
from dpbench.records.packed import line_of, recorded_records
from dpbench.records.schema import Record
from dpbench.records.store import LeftOut, Stored, local_records, write_record
from dpbench.report.collect import build_table
from dpbench.report.commands import read_table
from dpbench.spec import tables
from dpbench.spec.expand import run_id

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = "dpzero/quadratic"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A working tree with one table."""
    (tmp_path / "benchmarks" / "dpzero").mkdir(parents=True)
    shutil.copy(REPOSITORY / "benchmarks" / "dpzero" / "quadratic.yaml", tmp_path / "benchmarks" / "dpzero")
    shutil.copytree(REPOSITORY / "benchmarks" / "_shared", tmp_path / "benchmarks" / "_shared")
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    tables._index.cache_clear()
    yield tmp_path
    tables._index.cache_clear()


def test_readers_of_many_go_on_without_the_bad_ones(tree, capsys):
    """Every fault of `example_records` at once, among sound records, here and recorded."""
    bad, lines_of_file = 0, []
    for key, value, _ in FAULTS:
        values = sound()
        put(key, value)(values)
        text = text_of(values, renamed=key != "run")
        if key == "digest":
            text = json.dumps(values | {"digest": value})
        path = tree / "results/runs" / f"{bad:012x}" / "record.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        if key != "run":  # a line is of the run that it says
            lines_of_file.append(" ".join(text.splitlines()))
        bad += 1
    write_record(record(), tree / "results/runs" / record().run)
    packed = tree / "results/recorded/m/dpzero.jsonl"
    packed.parent.mkdir(parents=True)
    packed.write_text("\n".join([*lines_of_file, line_of(record())]) + "\n")
    (tree / "results/runs" / ("f" * 12) / "record.json").mkdir(parents=True)
    left_out: list[LeftOut] = []
    for read, count in ((local_records, bad + 1), (recorded_records, len(lines_of_file))):
        left_out.clear()
        assert [stored.record for stored in read(left_out=left_out)] == [record()]
        assert len(left_out) == count
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == count
        for line, item in zip(lines, left_out, strict=True):
            folder = f"runs/{item.run}/record.json" if count > bad else "recorded/m/dpzero.jsonl, line "
            assert line.startswith(f"warning: left out results/{folder}")
            assert len(line) < 600
            assert str(tree) not in line


def table(tree: Path, *more: str) -> int:
    return main(["table", TABLE, "--tier", "smoke", "--out", str(tree / "out"), *more])


def test_a_table_is_written_without_a_bad_record_and_says_so(tree, capsys):
    run = next(iter(study_at("smoke", [TABLE], "test").runs))
    path = tree / "results/runs" / run / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert table(tree) == 2
    stderr = capsys.readouterr().err
    assert f"results/runs/{run}/record.json: not a complete JSON file" in stderr
    (item,) = read_table(tree / "out" / "quadratic.json").left_out
    assert item.run == run
    for ending in ("csv", "md", "tex", "html"):
        assert (tree / "out" / f"quadratic.{ending}").exists()
    assert table(tree, "--keep-going") == 0


def test_a_bad_record_of_another_table_is_a_warning_alone(tree, capsys):
    path = write_record(record(), tree / "results/runs" / record().run)
    path.write_text(path.read_text().replace("1.5", "99.5"))
    assert table(tree) == 0
    assert f"left out results/runs/{record().run}/record.json" in capsys.readouterr().err


def test_the_report_of_recorded_results_names_what_it_omits(tree, capsys):
    path = tree / "results/recorded/m/dpzero.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(line_of(record()).replace("1.5", "99.5") + "\n")
    assert main(["report", "--recorded", "--out", str(tree / "page.html")]) == 0
    stderr = capsys.readouterr().err
    assert "left out results/recorded/m/dpzero.jsonl, line 1: its content does not fit its digest" in stderr
    assert "results/recorded/m/dpzero.jsonl, line 1" in (tree / "page.html").read_text()


def test_a_cut_file_of_recorded_results_keeps_complete_lines(tree, capsys):
    path = tree / "results/recorded/m/dpzero.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(line_of(record()) + "\n" + line_of(record())[:400])
    left_out: list[LeftOut] = []
    assert [stored.record for stored in recorded_records(left_out)] == [record()]
    assert [item.where for item in left_out] == ["results/recorded/m/dpzero.jsonl, line 2"]
    assert "restore the line from git" in capsys.readouterr().err


def test_a_chain_of_a_thousand_parents_ends_no_report(tree):
    """Run ids are hashes, so that a chain cannot close; it can be long."""
    stored, above = [], ""
    for number in range(1100):
        config = record().config | {"settings": {"n": number}, "parents": {"start": above} if above else {}, "job": "quadratic"}
        above = run_id(config)
        values = record().model_dump(exclude={"digest"}) | {"run": above, "config": config}
        stored.append(Stored(Record.model_validate(values), Path("record.json"), "m"))
    spec = tables.load_named(TABLE)
    table_data = build_table(spec, "smoke", resolver(config_of({"tier": "smoke"})), [], stored)
    assert [entry for entry in table_data.entries if entry.origin == "recorded"] == []

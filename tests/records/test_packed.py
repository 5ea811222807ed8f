"""Recorded results: a line a record, filed without touching other lines, every damage named by file and line."""

from __future__ import annotations

import json

import pytest
from example_records import record

from dpbench import paths
from dpbench.cli import main
from dpbench.records.packed import file_of, file_records, line_of, recorded_records
from dpbench.records.schema import Record
from dpbench.records.store import LeftOut, write_record
from dpbench.spec.expand import run_id


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    return tmp_path


def numbered(seed: int, paper: str = "dpzero", **more) -> Record:
    config = record().config | {"seed": seed}
    request = {"paper": paper, "table": "t", "tier": "laptop", "key": "0" * 12, "labels": {"x": str(seed)}}
    values = {"run": run_id(config), "config": config, "requests": [request]}
    return Record.model_validate(record().model_dump(exclude={"digest"}) | values | more)


def test_records_come_back_as_filed_by_machine_and_paper():
    records = [(numbered(0), "m"), (numbered(1), "m"), (numbered(2, "flashdp"), "m"), (numbered(0), "other-machine")]
    file_records(records)
    assert {(s.record.run, s.machine) for s in recorded_records()} == {(r.run, machine) for r, machine in records}
    assert [s.record for s in recorded_records() if s.machine == "other-machine"] == [numbered(0)]
    assert all(s.path == file_of(s.record, s.machine) for s in recorded_records())


def test_filing_one_record_changes_one_line():
    file_records([(numbered(seed), "m") for seed in range(5)])
    path = file_of(numbered(0), "m")
    before = path.read_text().splitlines()
    file_records([(numbered(3, seconds=2.0), "m")])
    after = path.read_text().splitlines()
    runs = [json.loads(line)["run"] for line in before]
    assert runs == sorted(runs)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert {s.record.seconds for s in recorded_records()} == {1.0, 2.0}


@pytest.mark.parametrize("how", ["cut", "edited", "no JSON", "empty"])
def test_a_damaged_line_is_named_and_the_others_are_read(how, capsys):
    file_records([(numbered(seed), "m") for seed in range(3)])
    path = file_of(numbered(0), "m")
    lines = path.read_text().splitlines()
    run = json.loads(lines[1])["run"]
    edited = lines[1].replace('"value":1.5', '"value":9.5')
    assert edited != lines[1]
    lines[1] = {"cut": lines[1][:-40], "edited": edited, "no JSON": "hello", "empty": ""}[how]
    path.write_text("\n".join(lines) + "\n")
    left_out: list[LeftOut] = []
    assert len(list(recorded_records(left_out))) == 2
    (item,) = left_out
    assert item.where == "results/recorded/m/dpzero.jsonl, line 2"
    assert "restore the line from git" in item.why
    assert "results/recorded/m/dpzero.jsonl, line 2" in capsys.readouterr().err
    if how in ("cut", "edited"):  # it still says which run it is of, so that a sound record takes its place
        again = next(r for r in map(numbered, range(3)) if r.run == run)
        file_records([(again, "m")])
        assert len(list(recorded_records())) == 3


def test_a_record_is_shown_by_the_first_digits_of_its_run(tree, capsys):
    file_records([(numbered(seed), "m") for seed in range(3)])
    shown = numbered(1)
    assert main(["show", shown.run[:8]]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(line_of(shown))
    assert main(["show", ""]) == 2
    assert "give more digits" in capsys.readouterr().err
    local = numbered(1, seconds=7.0)
    write_record(local, paths.runs() / local.run)
    assert main(["show", shown.run]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 7.0
    assert main(["show", "x"]) == 2
    assert "there is no record of run x" in capsys.readouterr().err

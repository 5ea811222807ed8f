"""Records from before there were digests get one; nothing else in them changes, and what does not hold stays as it is."""

from __future__ import annotations

import json

import pytest
from test_archive import OTHER
from test_store import record

from dpbench.cli import main
from dpbench.errors import DpbenchError
from dpbench.records.archive import pack_files, unpack
from dpbench.records.migrate import migrate
from dpbench.records.store import LeftOut, read_record, record_text, write_record


def old(made=None) -> dict:
    values = (made or record()).model_dump(mode="json")
    del values["digest"]
    return values


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    for name, made in (("results/runs", record()), ("results/recorded/m", OTHER)):
        folder = tmp_path / name / made.run
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(old(made), indent=1, sort_keys=True) + "\n")
    return tmp_path


def test_only_a_line_is_added_to_each_and_only_once(tree, capsys):
    paths = sorted(tree.glob("results/**/record.json"))
    before = [path.read_text().splitlines() for path in paths]
    assert main(["record", "--migrate"]) == 0
    assert capsys.readouterr().out.count("1 records, 1 of them given a digest") == 2
    after = [path.read_text() for path in paths]
    for path, was, now in zip(paths, before, after, strict=True):
        added = [line for line in now.splitlines() if line not in was]
        assert [line.split(":")[0] for line in added] == [' "digest"']
        assert [line for line in now.splitlines() if line not in added] == was
        assert read_record(path, path.parent.name)
    assert main(["record", "--migrate"]) == 0
    assert [path.read_text() for path in paths] == after


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v["config"].update(seed=5),
        lambda v: v["metrics"][0].update(value=None),
        lambda v: v.update(run="0" * 12),
        lambda v: v.update(requests=[{"paper": "a", "table": "b", "tier": "huge"}]),
        lambda v: v.update(digest="0" * 64),
    ],
)
def test_what_does_not_hold_gets_no_digest_and_is_named(tree, capsys, spoil):
    path = tree / "results" / "runs" / record().run / "record.json"
    values = old()
    spoil(values)
    path.write_text(json.dumps(values))
    before = path.read_bytes()
    assert main(["record", "--migrate", str(tree / "results")]) == 2
    said = capsys.readouterr()
    assert "1 records, 1 of them given a digest" in said.out
    assert f"results/runs/{record().run}/record.json" in said.err
    assert path.read_bytes() == before


def test_an_archive_is_migrated_in_place(tree):
    path = tree / "x.tar.gz"
    members = {
        f"{record().run}/record.json": json.dumps(old()).encode(),
        f"{record().run}/steps.jsonl": b"{}\n",
        f"{OTHER.run}/record.json": b"{",
    }
    path.write_bytes(pack_files((name, content, 0.0) for name, content in members.items()))
    left_out: list[LeftOut] = []
    assert migrate([path], left_out) == ["x.tar.gz: 1 records, 1 of them given a digest"]
    assert [item.run for item in left_out] == [OTHER.run]
    (tree / "out").mkdir()
    unpack(path, tree / "out")
    assert {str(p.relative_to(tree / "out")) for p in (tree / "out").glob("*/*")} == set(members)
    assert (tree / "out" / record().run / "record.json").read_text() == record_text(record())
    assert (tree / "out" / OTHER.run / "record.json").read_bytes() == b"{"


def test_a_place_that_is_not_there_is_named(tree):
    with pytest.raises(DpbenchError, match=r"none: cannot be read"):
        migrate([tree / "none"])


def test_what_is_written_now_needs_no_migration(tree):
    path = write_record(record(), tree / "results" / "runs" / record().run)
    before = path.stat().st_mtime_ns, path.read_bytes()
    migrate([])
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before

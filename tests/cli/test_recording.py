"""`dpbench record`: runs what is missing, packs after each run, stops in time; merging checks everything first."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from dpbench import paths
from dpbench.cli import recording
from dpbench.errors import DpbenchError
from dpbench.execution import runner
from dpbench.execution.study import study
from dpbench.records.packed import recorded_records
from dpbench.records.store import read_record, write_record
from dpbench.spec import tables
from dpbench.spec.config import Config

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A working tree of its own, with the tables and no results."""
    shutil.copytree(REPOSITORY / "benchmarks", tmp_path / "benchmarks")
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    tables._index.cache_clear()
    yield tmp_path
    tables._index.cache_clear()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished smoke run: (id, folder)."""
    smoke_study = study(Config(tier="smoke", tables=["automatic/glue_base"]))
    run = next(r for r in smoke_study.runs.values() if r.config["settings"]["epsilon"] is None)
    folder = tmp_path_factory.mktemp("finished") / run.id
    runner.execute(run.config, folder, quiet=True)
    return run.id, folder


def place(finished, tree):
    shutil.copytree(finished[1], paths.runs() / finished[0])


def archive_of(tree):
    path = tree / "x.tar.gz"
    return recording.pack(study(Config(tier="smoke", tables=["automatic/glue_base"])), path), path


def test_packing_and_merging_files_the_record_under_its_machine(tree, finished):
    place(finished, tree)
    count, path = archive_of(tree)
    assert count == 1
    (message,) = recording.merge(path)
    (stored,) = recorded_records()
    assert stored.record == read_record(finished[1] / "record.json")
    assert stored.machine in message
    assert stored.path.name == "other.jsonl"  # it was made for no cell
    assert "filed already" in recording.merge(path)[0]


def test_missing_runs_alone_are_run_and_archived_one_by_one(tree, finished, monkeypatch, capsys):
    place(finished, tree)
    ran = []

    def fake(run, plan, threads, seconds):
        ran.append(run.id)
        return "done"

    monkeypatch.setattr(recording, "_run", fake)
    recording.record("smoke", 60, tree / "out.tar.gz", ["automatic/glue_base"])
    assert len(ran) == 1
    assert finished[0] not in ran
    with tarfile.open(tree / "out.tar.gz") as archive:
        assert f"{finished[0]}/record.json" in archive.getnames()
    assert "1 runs to do, 1 done already" in capsys.readouterr().out


def test_a_run_that_another_recorder_finished_is_skipped(tree, finished, monkeypatch):
    ran = []

    def fake(run, plan, threads, seconds):
        if not ran:
            place(finished, tree)
        ran.append(run.id)
        return "done"

    monkeypatch.setattr(recording, "_run", fake)
    recording.record("smoke", 60, tree / "out.tar.gz", ["flashdp/batch_size", "automatic/glue_base"])
    assert len(ran) == 3
    assert finished[0] not in ran


def test_recorded_runs_are_not_made_again(tree, finished, monkeypatch):
    place(finished, tree)
    recording.merge(archive_of(tree)[1])
    shutil.rmtree(paths.runs())
    ran = []
    monkeypatch.setattr(recording, "_run", lambda run, *_: ran.append(run.id) or "done")
    recording.record("smoke", 60, tree / "out.tar.gz", ["automatic/glue_base"])
    assert finished[0] not in ran


def test_it_stops_in_time(tree, monkeypatch, capsys):
    monkeypatch.setattr(recording, "_run", lambda *_: pytest.fail("started a run that cannot end in time"))
    recording.record("overnight", 0.1, tree / "out.tar.gz", ["flashdp/batch_size"])
    assert "stopped in time" in capsys.readouterr().out
    assert (tree / "out.tar.gz").exists()


def test_tables_without_records_come_first(tree, finished, monkeypatch):
    place(finished, tree)
    recording.merge(archive_of(tree)[1])
    ran = []
    monkeypatch.setattr(recording, "_run", lambda run, *_: ran.append(run.config["job"]) or "done")
    recording.record("smoke", 60, tree / "out.tar.gz", ["automatic/glue_base", "flashdp/batch_size"])
    assert ran == ["throughput", "throughput", "text_classification"]


def test_a_parent_is_made_again_only_where_a_child_needs_it(tree, monkeypatch):
    laptop_study = study(Config(tier="laptop", tables=["automatic/glue_base"]))
    parent = next(r for r in laptop_study.runs.values() if r.config["job"] == "text_features")
    others = set(laptop_study.runs) - {parent.id}
    child = next(r.id for r in laptop_study.runs.values() if parent.id in [p.id for p in r.parents.values()])
    assert next(r.id for r in recording._in_order(laptop_study, set())) == parent.id
    assert list(recording._in_order(laptop_study, others)) == []
    assert [r.id for r in recording._in_order(laptop_study, others - {child})] == [parent.id, child]


def rewrite(path, change):
    """The archive with its members changed."""
    with tarfile.open(path) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}
    change(members)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_a_spoiled_archive_files_nothing(tree, finished):
    place(finished, tree)
    _, path = archive_of(tree)
    rewrite(path, lambda m: m.update({"../evil": b"x"}))
    with pytest.raises(DpbenchError, match="unexpected member"):
        recording.merge(path)
    assert list(recorded_records()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update({k: v[:100] for k, v in m.items() if k.endswith("record.json")}), "not a complete JSON"),
        (lambda m: m.update({k: v + b"{" for k, v in m.items() if k.endswith("steps.jsonl")}), "is not JSON"),
        (lambda m: m.pop(next(k for k in m if k.endswith("record.json"))), "has no record.json"),
    ],
)
def test_a_spoiled_record_is_named_and_not_filed(tree, finished, capsys, change, says):
    place(finished, tree)
    _, path = archive_of(tree)
    rewrite(path, change)
    assert recording.merge(path) == []
    stderr = capsys.readouterr().err
    assert says in stderr
    assert finished[0] in stderr
    assert list(recorded_records()) == []


def test_a_bad_record_of_this_machine_is_left_out_of_the_pack(tree, finished, capsys):
    place(finished, tree)
    record = paths.runs() / finished[0] / "record.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    count, path = archive_of(tree)
    assert count == 0
    assert path.exists()
    assert f"left out results/runs/{finished[0]}/record.json" in capsys.readouterr().err


def test_what_is_no_archive_is_named(tree):
    (tree / "x.tar.gz").write_text("hello")
    with pytest.raises(DpbenchError, match="cannot be read as an archive"):
        recording.merge(tree / "x.tar.gz")
    with pytest.raises(DpbenchError, match="cannot be read as an archive"):
        recording.merge(tree / "missing.tar.gz")


def test_records_hold_no_text_of_the_dataset(finished):
    from dpbench.data.synthetic import stand_in

    text = (finished[1] / "record.json").read_text() + (finished[1] / "steps.jsonl").read_text()
    json.loads((finished[1] / "record.json").read_text())
    assert not any(sentence in text for sentence in stand_in("sentiment").generate("train")["text"][:200])


def test_text_of_a_dataset_stays_on_the_machine(tree, finished):
    """Packed or merged, a sample keeps what the model wrote and the input's index."""
    place(finished, tree)
    path = paths.runs() / finished[0] / "record.json"
    sample = {"place": "best", "index": 3, "output": "written", "bleu": 1.5, "input": "private", "references": ["private"]}
    record = read_record(path)
    write_record(record.model_copy(update={"facts": record.facts | {"samples": [sample]}}), path.parent)
    _, archive = archive_of(tree)
    with tarfile.open(archive) as packed:
        text = packed.extractfile(f"{finished[0]}/record.json").read().decode()
    assert '"private"' not in text
    assert read_record(path).facts["samples"] == [sample]
    with tarfile.open(archive, "w:gz") as forged:  # an archive that somebody made by hand
        forged.add(path, arcname=f"{finished[0]}/record.json")
    recording.merge(archive)
    (stored,) = recorded_records()
    assert stored.record.facts["samples"] == [{key: sample[key] for key in ("place", "index", "output", "bleu")}]
    assert stored.record.metrics == record.metrics

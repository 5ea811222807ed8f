"""One run from its config to its record, and what happens when it goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.execution import runner, tracking
from dpbench.execution.contract import Outcome
from dpbench.execution.plan import requests_of
from dpbench.execution.study import study
from dpbench.files import sha256_file
from dpbench.records.store import read_record, write_record
from dpbench.spec.config import Config
from dpbench.spec.expand import run_id

REPOSITORY = Path(__file__).resolve().parents[2]


def smoke(table):
    """The smoke configs of a table, on embedded data, private ones last."""
    smoke_study = study(Config(tier="smoke", tables=[table], sources={"sst2": "embedded", "wikitext2": "embedded"}))
    return sorted((r.config for r in smoke_study.runs.values()), key=lambda c: str(c["settings"].get("epsilon")), reverse=True)


@pytest.fixture(scope="module")
def config():
    run_config = next(c for c in smoke("automatic/glue_base") if c["settings"]["epsilon"] == 8)
    return run_config


@pytest.fixture(scope="module")
def finished_run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "x"
    plans = study(Config(tier="smoke", tables=["automatic/glue_base"])).plans.values()
    asked = requests_of(plans)[runner.run_id(config)]
    return runner.execute(config, folder, quiet=True, requests=asked), folder


def test_the_record_says_everything(finished_run, config):
    record, folder = finished_run
    assert read_record(folder / "record.json") == record
    assert record.config == config
    assert record.synthetic
    assert record.privacy.epsilon <= 8
    assert record.privacy.epsilon >= 7.92
    assert record.privacy.epsilon_rdp > record.privacy.epsilon
    assert record.privacy.validity == "nominal"
    assert record.mechanism["sampling"]["kind"] == "poisson"
    assert record.mechanism["noise_multiplier"] == record.privacy.noise_multiplier
    assert [(r.table, r.labels["epsilon"]) for r in record.requests] == [("glue_base", "8")]
    assert record.facts["unprotected"] == []
    assert 0 <= record.metrics[0].value <= 100
    assert record.environment.packages["torch"]
    text = (folder / "record.json").read_text()
    assert str(Path.home()) not in text
    assert str(REPOSITORY) not in text


def test_steps_are_one_json_object_a_line(finished_run):
    lines = [json.loads(line) for line in (finished_run[1] / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10))
    assert len({line["batch_size"] for line in lines}) > 1  # Poisson


def untimed(record):
    return [m for m in record.metrics if m.unit != "s"]


def test_the_same_config_gives_the_same_numbers(finished_run, config, tmp_path):
    again = runner.execute(config, tmp_path / "y", quiet=True)
    assert untimed(again) == untimed(finished_run[0])
    assert [m.name for m in again.metrics] == [m.name for m in finished_run[0].metrics]

    def steps(folder):
        return (folder / "steps.jsonl").read_text()

    assert steps(tmp_path / "y") == steps(finished_run[1])


def test_killed_in_the_middle_leaves_no_record_and_starts_again(finished_run, config, tmp_path):
    out = tmp_path / "z"
    words = [sys.executable, "-m", "dpbench", "run", json.dumps(config), "--out", str(out), "--threads", "1", "--quiet"]
    process = subprocess.Popen(words, cwd=REPOSITORY)
    steps = out / "steps.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (steps.exists() and steps.read_text().count("\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "record.json").exists()
    assert untimed(runner.execute(config, out, quiet=True)) == untimed(finished_run[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/no/such/config.json", "no such file"),
        ("{", "not a complete JSON file"),
        ('{"job": "text_classification"}', "settings: Field required"),
        (
            '{"job": "x", "settings": {}, "seed": 0, "versions": {"job:text_clasification": 1}, "sources": {}, "parents": {}}',
            "did you mean 'text_classification'",
        ),
        (
            '{"job": "x", "settings": {}, "seed": 0, "versions": {"engine:fused": 0}, "sources": {}, "parents": {}}',
            "made for engine:fused version 0",
        ),
    ],
)
def test_bad_configs_are_named(text, says):
    with pytest.raises(DpbenchError, match=says):
        runner.read_config(text)


def test_changed_sources_stop_before_work(config, tmp_path):
    import copy

    changed = copy.deepcopy(config)
    changed["sources"]["dataset:sst2"]["revision"] = "v0"
    with pytest.raises(DpbenchError, match=r"dataset:sst2 is no longer what this run was named after"):
        runner.execute(changed, tmp_path / "x", quiet=True)
    assert not (tmp_path / "x").exists()


def test_what_is_odd_about_the_data_stands_in_the_record(config, tmp_path):
    """Without the place of the file, which is of no one's concern elsewhere."""
    from dpbench.data import registry
    from dpbench.data.remarks import remark
    from dpbench.execution.contract import Context, Outcome
    from dpbench.execution.tracking import StepLog

    def run(context):
        for _ in range(2):
            remark(f"{registry.title(plugins.get('dataset', 'sst2'), 'train')}: something odd")
        return Outcome([], warnings=["of the job"])

    bare = config | {"sources": {}, "parents": {}}
    context = Context(tmp_path, bare["seed"], {}, StepLog(tmp_path / "steps.jsonl"))
    record = runner._run(run, bare, context, True, ())
    assert record.warnings == ["of the job", "dataset sst2, split 'train': something odd"]


def test_no_place_to_write_stops_before_work(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DpbenchError, match="cannot be written"):
        runner.execute(config, tmp_path / "file" / "x", quiet=True)


def test_a_missing_gpu_stops_before_work(tmp_path):
    import copy

    config = copy.deepcopy(smoke("flashdp/batch_size")[0])
    config["settings"]["device"] = "cuda"
    with pytest.raises(DpbenchError, match="needs a CUDA device"):
        runner.execute(config, tmp_path / "x", quiet=True)


def test_a_missing_parent_artefact_is_named(tmp_path):
    smoke_study = study(
        Config(
            tier="laptop",
            tables=["automatic/glue_base"],
            sources={"sst2": "embedded", "wikitext2": "embedded", "minilm": "scratch"},
        )
    )
    child = next(r for r in smoke_study.runs.values() if r.config["parents"])
    with pytest.raises(DpbenchError, match="no such record"):
        runner.execute(child.config, tmp_path / child.id, quiet=True)


def test_a_second_process_takes_the_first_ones_record(config, tmp_path, finished_run):
    """It waits for the lock, then finds the record there."""
    from filelock import FileLock

    out = tmp_path / "x"
    out.mkdir()
    lock = FileLock(out / runner.LOCK)
    lock.acquire()
    words = [sys.executable, "-m", "dpbench", "run", json.dumps(config), "--out", str(out), "--threads", "1", "--quiet"]
    process = subprocess.Popen(words, cwd=REPOSITORY)
    time.sleep(4)
    text = (finished_run[1] / "record.json").read_text()
    (out / "record.json").write_text(text)
    lock.release()
    assert process.wait(timeout=60) == 0
    assert (out / "record.json").read_text() == text


@pytest.fixture
def copy(finished_run, tmp_path):
    """A finished run's folder of its own, with an artefact beside its record."""
    out = tmp_path / finished_run[0].run
    shutil.copytree(finished_run[1], out)
    (out / "weights").mkdir()
    (out / "weights" / "w").write_text("old")
    record = finished_run[0].model_copy(update={"artefacts": {"weights/w": sha256_file(out / "weights" / "w")}})
    write_record(record, out)
    return out


def content(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock")}


def test_a_run_that_fails_over_a_finished_one_leaves_it_whole(copy, config, monkeypatch):
    def fails(settings, context):
        context.steps.write(step=0, loss=1.0)
        (context.out / "weights").mkdir()
        (context.out / "weights" / "w").write_text("new")
        raise DpbenchError("no luck")

    before = content(copy)
    monkeypatch.setattr("dpbench.jobs.text_classification.run", fails)
    with pytest.raises(DpbenchError, match="no luck"):
        runner.execute(config, copy, quiet=True)
    assert content(copy) == before
    assert not (copy / runner.NEXT).exists()


def test_a_second_run_replaces_a_finished_one_at_its_end(copy, config, finished_run, monkeypatch):
    def again(settings, context):
        assert read_record(copy / "record.json").artefacts, "the old record is there until the new one is"
        assert (copy / "weights" / "w").read_text() == "old"
        context.steps.write(step=0, loss=1.0)
        (context.out / "weights").mkdir()
        (context.out / "weights" / "w").write_text("new")
        return Outcome(finished_run[0].metrics, artefacts=["weights/w"])

    monkeypatch.setattr("dpbench.jobs.text_classification.run", again)
    record = runner.execute(config, copy, quiet=True)
    assert read_record(copy / "record.json") == record
    assert record.artefacts == {"weights/w": sha256_file(copy / "weights" / "w")}
    assert (copy / "weights" / "w").read_text() == "new"
    assert len((copy / "steps.jsonl").read_text().splitlines()) == 1
    assert not (copy / runner.NEXT).exists()


@pytest.mark.parametrize("moved", [[], ["weights/w"], ["config.json", "steps.jsonl", "weights/w"], ["all"]])
@pytest.mark.parametrize("by", ["a run", "a child"])
def test_a_killed_replacement_of_a_record_is_finished_later(copy, config, finished_run, moved, by, monkeypatch):
    new = copy / runner.NEXT
    new.mkdir()
    if moved != ["all"]:
        for name in ("config.json", "steps.jsonl"):
            shutil.copy(copy / name, new)
        (new / "weights").mkdir()
        (new / "weights" / "w").write_text("new")
        digest = sha256_file(new / "weights" / "w")
        write_record(read_record(copy / "record.json").model_copy(update={"artefacts": {"weights/w": digest}}), new)
        for name in moved:
            (new / name).replace(copy / name)
    monkeypatch.setattr(runner, "_run", lambda *_: pytest.fail("made again"))
    if by == "a run":
        runner.execute(config, copy, quiet=True, keep=True)
        assert not new.exists()
    else:
        runner.settle(copy)
    assert (copy / "weights" / "w").read_text() == ("old" if moved == ["all"] else "new")
    assert read_record(copy / "record.json").artefacts == {"weights/w": sha256_file(copy / "weights" / "w")}


def test_what_a_killed_second_run_began_is_cleared_away(copy, config, monkeypatch):
    before = content(copy)
    (copy / runner.NEXT / "weights").mkdir(parents=True)
    (copy / runner.NEXT / "weights" / "w").write_text("half")
    monkeypatch.setattr(runner, "_run", lambda *_: pytest.fail("made again"))
    runner.execute(config, copy, quiet=True, keep=True)
    assert content(copy) == before
    assert not (copy / runner.NEXT).exists()


@pytest.mark.parametrize("fault", ["no record", "half a record", "no artefact", "another run's"])
def test_what_is_not_a_finished_run_is_not_kept(copy, config, fault, monkeypatch):
    record = copy / "record.json"
    if fault == "no record":
        record.unlink()
    elif fault == "half a record":
        record.write_text(record.read_text()[:100])
    elif fault == "no artefact":
        (copy / "weights" / "w").unlink()
    else:
        other = config | {"seed": config["seed"] + 1}
        write_record(read_record(record).model_copy(update={"config": other, "run": run_id(other)}), copy)

    class Made(Exception):
        pass

    def make(*_):
        raise Made

    monkeypatch.setattr(runner, "_run", make)
    with pytest.raises(Made):
        runner.execute(config, copy, quiet=True, keep=True)


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_full_during_a_job_is_one_line(config, tmp_path, monkeypatch):
    monkeypatch.setattr("dpbench.jobs.text_classification.run", full)
    with pytest.raises(DpbenchError, match="x: the disk is full"):
        runner.execute(config, tmp_path / "x", quiet=True)


def test_a_disk_full_as_the_steps_are_closed_is_one_line(tmp_path):
    log = tracking.StepLog(tmp_path / "steps.jsonl")
    log._file.close()
    log._file = SimpleNamespace(close=full)
    with pytest.raises(DpbenchError, match=r"steps\.jsonl: the disk is full"):
        log.close()


def test_the_mirror_works_offline_and_never_stops_a_run(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "x"
    record = runner.execute(config, out, tracking="offline", quiet=True)
    assert record.warnings == []
    (offline,) = (out / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))


def test_trouble_with_the_mirror_is_a_warning(tmp_path, monkeypatch):
    import wandb

    def broken(**_):
        raise RuntimeError("no mirror today")

    monkeypatch.setattr(wandb, "init", broken)
    log = tracking.StepLog(tmp_path / "steps.jsonl", "offline")
    log.write(step=0, loss=1.0)
    log.close()
    assert log.warnings == ["the Weights & Biases mirror stopped: RuntimeError: no mirror today"]
    assert json.loads((tmp_path / "steps.jsonl").read_text()) == {"step": 0, "loss": 1.0}


def test_an_unknown_tracking_mode_is_named(tmp_path):
    with pytest.raises(DpbenchError, match="unknown tracking mode"):
        tracking.StepLog(tmp_path / "steps.jsonl", "sometimes")

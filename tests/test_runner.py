"""One run from its config to its record, and what happens when it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpbench import runner, tracking
from dpbench.errors import DpbenchError
from dpbench.records.store import read_record
from dpbench.spec.config import Config
from dpbench.study import study

REPOSITORY = Path(__file__).resolve().parents[1]


def smoke(table):
    """The smoke configs of a table, on embedded data, private ones last."""
    found = study(Config(tier="smoke", tables=[table], sources={"sst2": "embedded", "wikitext2": "embedded"}))
    return sorted((r.config for r in found.runs.values()), key=lambda c: str(c["settings"].get("epsilon")), reverse=True)


@pytest.fixture(scope="module")
def config():
    found = next(c for c in smoke("automatic/glue_base") if c["settings"]["epsilon"] == 8)
    return found


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "x"
    return runner.execute(config, folder, quiet=True), folder


def test_the_record_says_everything(made, config):
    record, folder = made
    assert read_record(folder / "record.json") == record
    assert record.config == config
    assert record.synthetic
    assert record.privacy.epsilon <= 8
    assert record.privacy.epsilon >= 7.92
    assert record.privacy.epsilon_rdp > record.privacy.epsilon
    assert record.privacy.validity == "nominal"
    assert record.mechanism["sampling"]["kind"] == "poisson"
    assert record.mechanism["noise_multiplier"] == record.privacy.noise_multiplier
    assert [(r.table, r.tier) for r in record.requests] == [("glue_base", "smoke"), ("glue_large", "smoke")]
    assert record.facts["unprotected"] == []
    assert 0 <= record.metrics[0].value <= 100
    assert record.environment.packages["torch"]
    text = (folder / "record.json").read_text()
    assert str(Path.home()) not in text
    assert str(REPOSITORY) not in text


def test_steps_are_one_json_object_a_line(made):
    lines = [json.loads(line) for line in (made[1] / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10))
    assert len({line["batch_size"] for line in lines}) > 1  # Poisson


def untimed(record):
    return [m for m in record.metrics if m.unit != "s"]


def test_the_same_config_gives_the_same_numbers(made, config, tmp_path):
    again = runner.execute(config, tmp_path / "y", quiet=True)
    assert untimed(again) == untimed(made[0])
    assert [m.name for m in again.metrics] == [m.name for m in made[0].metrics]

    def steps(folder):
        return (folder / "steps.jsonl").read_text()

    assert steps(tmp_path / "y") == steps(made[1])


def test_killed_in_the_middle_leaves_no_record_and_starts_again(made, config, tmp_path):
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
    assert untimed(runner.execute(config, out, quiet=True)) == untimed(made[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/no/such/config.json", "no such file"),
        ("{", "not a whole JSON file"),
        ('{"job": "classify"}', "settings: Field required"),
        (
            '{"job": "x", "settings": {}, "seed": 0, "versions": {"job:clasify": 1}, "sources": {}, "parents": {}}',
            "did you mean 'classify'",
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
    found = study(
        Config(
            tier="laptop",
            tables=["automatic/glue_base"],
            sources={"sst2": "embedded", "wikitext2": "embedded", "minilm": "scratch"},
        )
    )
    child = next(r for r in found.runs.values() if r.config["parents"])
    with pytest.raises(DpbenchError, match=r"has not left features\.safetensors"):
        runner.execute(child.config, tmp_path / child.id, quiet=True)


def test_a_second_process_takes_the_first_ones_record(config, tmp_path, made):
    """It waits for the lock, then finds the record there."""
    from filelock import FileLock

    out = tmp_path / "x"
    out.mkdir()
    lock = FileLock(out / runner.LOCK)
    lock.acquire()
    words = [sys.executable, "-m", "dpbench", "run", json.dumps(config), "--out", str(out), "--threads", "1", "--quiet"]
    process = subprocess.Popen(words, cwd=REPOSITORY)
    time.sleep(4)
    text = (made[1] / "record.json").read_text()
    (out / "record.json").write_text(text)
    lock.release()
    assert process.wait(timeout=60) == 0
    assert (out / "record.json").read_text() == text


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

"""A student's run that is killed halfway: nothing of it counts, and its teacher is not trained again."""

from __future__ import annotations

import pytest

from dpbench.compression.task import CompressedTask
from dpbench.data import registry as datasets
from dpbench.execution.runner import execute
from dpbench.models import registry as models
from dpbench.records.store import NAME, read_record
from dpbench.spec.expand import expand
from dpbench.spec.tables import load_table


def resolve(kind, name):
    return datasets.resolve(name, "embedded") if kind == "dataset" else models.resolve(name, "scratch")


def test_a_killed_student_starts_again_behind_the_same_teacher(tmp_path, monkeypatch):
    plan = expand(load_table("compression", "dpkd"), "smoke", resolve)
    (student,) = [run for run in plan.runs.values() if "teacher" in run.parents]
    teacher = student.parents["teacher"]
    execute(teacher.config, tmp_path / teacher.id, quiet=True)
    record = tmp_path / teacher.id / NAME
    before = record.stat().st_mtime_ns, record.read_bytes()
    real = CompressedTask.losses
    steps = []

    def killed(task, model, batch):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(task, model, batch)

    monkeypatch.setattr(CompressedTask, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        execute(student.config, tmp_path / student.id, quiet=True)
    assert not (tmp_path / student.id / NAME).exists()
    monkeypatch.setattr(CompressedTask, "losses", real)
    finished = execute(student.config, tmp_path / student.id, quiet=True)
    assert (record.stat().st_mtime_ns, record.read_bytes()) == before
    assert finished.config["parents"]["teacher"] == finished.facts["teacher_run"] == teacher.id
    assert 0.99 * 8 <= finished.privacy.epsilon <= 8
    assert read_record(record).artefacts.keys() == {"encoder/config.json", "encoder/model.safetensors", "head.safetensors"}
    lines = (tmp_path / student.id / "steps.jsonl").read_text().splitlines()
    assert len(lines) == student.config["settings"]["steps"], "the log starts again, too"

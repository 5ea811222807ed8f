"""Records: validated both ways, whole or absent."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest
from example_records import record
from hypothesis import given
from hypothesis import strategies as st

from dpbench import files
from dpbench.errors import DpbenchError
from dpbench.records.schema import Metric
from dpbench.records.store import NAME, read_record, write_record


def test_a_record_comes_back_as_it_was(tmp_path):
    path = write_record(record(), tmp_path)
    assert read_record(path) == record()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_values_survive_exactly(tmp_path_factory, value):
    path = write_record(record(value), tmp_path_factory.mktemp("r"))
    assert read_record(path).metrics[0].value == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_finite_values_are_metrics(value):
    with pytest.raises(ValueError, match="finite"):
        Metric(name="x", value=value, unit="")


def test_a_missing_value_needs_a_reason():
    with pytest.raises(ValueError, match="note"):
        Metric(name="x", value=None, unit="")
    assert Metric(name="x", value=None, unit="", note="skipped: not installed").value is None


def spoiled(tmp_path, change):
    path = write_record(record(), tmp_path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(schema_version=99), "schema version 99, this dpbench reads 2"),
        (lambda v: v.pop("schema_version"), "schema version None"),
        (lambda v: v.update(colour="red"), "colour"),
        (lambda v: v.pop("metrics"), "metrics"),
        (lambda v: v["metrics"][0].update(value="high"), "metrics.0.value"),
        (lambda v: v["config"].update(seed=7), "hashes to"),
        (lambda v: v.update(run="0" * 12), "hashes to"),
    ],
)
def test_a_spoiled_record_says_what_and_the_way_out(tmp_path, change, says):
    path = spoiled(tmp_path, change)
    with pytest.raises(DpbenchError, match=says) as caught:
        read_record(path)
    assert str(path) in caught.value.what
    assert "run again" in caught.value.hint


@pytest.mark.parametrize("keep", [0, 1, 50, 200])
def test_a_truncated_record_is_an_error_not_a_value(tmp_path, keep):
    path = write_record(record(), tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DpbenchError, match="not a complete JSON file"):
        read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(DpbenchError, match="no such record"):
        read_record(tmp_path / NAME)


def test_a_full_disk_leaves_the_old_record_and_no_scraps(tmp_path, monkeypatch):
    path = write_record(record(1.0), tmp_path)
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DpbenchError, match="the disk is full") as caught:
        write_record(record(2.0), tmp_path)
    assert "finished records are kept" in caught.value.hint
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_a_process_killed_while_writing_leaves_the_old_record(tmp_path, monkeypatch):
    path = write_record(record(1.0), tmp_path)

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    monkeypatch.setattr(files.os, "replace", kill)
    with pytest.raises(Killed):
        write_record(record(2.0), tmp_path)
    assert read_record(path).metrics[0].value == 1.0


def test_no_permission_is_named(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(DpbenchError, match="no permission to write"):
        write_record(record(), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DpbenchError, match="no permission to write"):
        write_record(record(), tmp_path / "inside")


def test_written_records_are_readable_by_others(tmp_path):
    assert stat.S_IMODE(write_record(record(), tmp_path).stat().st_mode) == 0o644

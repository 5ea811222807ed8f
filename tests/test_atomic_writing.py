"""Files are whole or absent, and what a killed writer leaves behind goes with the next write."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from dpbench import files
from dpbench.errors import DpbenchError
from dpbench.files import is_disk_full, write_atomic, write_cache

KILLED_BEFORE_THE_RENAME = """
import os, signal, sys
from pathlib import Path
from dpbench.files import write_atomic
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), "new")
"""


def test_what_a_killed_writer_leaves_is_swept_by_the_next_write(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_atomic(path, "newer")
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
    assert path.read_text() == "newer"


def test_a_file_that_is_being_written_is_not_swept(tmp_path):
    path = tmp_path / "record.json"
    descriptor, temporary = files._create_temporary(path)
    write_atomic(path, "another writer's")
    assert os.path.exists(temporary)
    os.close(descriptor)
    write_atomic(path, "again")
    assert not os.path.exists(temporary)


def test_only_files_of_that_name_are_swept(tmp_path):
    others = [".config.json.abcd1234", ".record.json.process", "record.json.abcd1234", ".record.json.abcd12345"]
    for name in others:
        (tmp_path / name).touch()
    write_atomic(tmp_path / "record.json", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "record.json"])


def test_a_link_in_place_of_a_temporary_file_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / ".record.json.abcd1234").symlink_to(target)
    write_atomic(tmp_path / "record.json", "x")
    assert target.read_text() == "mine"


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "record.json"
    path.write_text("old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DpbenchError, match=r"record\.json: the disk is full"):
        write_atomic(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("record.json", "old")]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    write_cache(tmp_path / "file" / "x.json", "x")
    write_cache(tmp_path / "y.json", "y")
    assert (tmp_path / "y.json").read_text() == "y"


def test_a_full_disk_is_known_whoever_says_so():
    def chained(cause):
        error = RuntimeError("failed writing file")
        error.__cause__ = cause
        return error

    assert is_disk_full(OSError(errno.ENOSPC, "x"))
    assert is_disk_full(chained(OSError(errno.EDQUOT, "x")))
    assert is_disk_full(ValueError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })'))
    assert not is_disk_full(chained(OSError(errno.EACCES, "x")))
    loop = RuntimeError("x")
    loop.__cause__ = chained(loop)
    assert not is_disk_full(loop)

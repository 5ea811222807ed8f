"""Archives that somebody sends: read in one pass with limits on the whole; the sound records of a sound archive are filed."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from example_records import record

from dpbench.cli import main, recording
from dpbench.errors import DpbenchError
from dpbench.records import archive as archives
from dpbench.records.archive import pack_files, unpack
from dpbench.records.packed import recorded_records
from dpbench.records.schema import Record
from dpbench.records.store import LeftOut, record_text
from dpbench.spec import tables
from dpbench.spec.expand import run_id

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = record()
NAME = f"{GOOD.run}/record.json"
TEXT = record_text(GOOD).encode()


def other(**over) -> Record:
    """A sound record of another run."""
    config = GOOD.config | {"seed": 1}
    return Record.model_validate(record().model_dump(exclude={"digest"}) | {"run": run_id(config), "config": config} | over)


OTHER = other()


def asked_by(paper: str, table: str) -> Record:
    return other(requests=[{"paper": paper, "table": table, "tier": "smoke", "key": "0" * 12}])


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A working tree with one table."""
    (tmp_path / "benchmarks" / "automatic").mkdir(parents=True)
    shutil.copy(REPOSITORY / "benchmarks" / "automatic" / "glue_base.yaml", tmp_path / "benchmarks" / "automatic")
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    tables._index.cache_clear()
    yield tmp_path
    tables._index.cache_clear()


def block(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member.tobuf(tarfile.GNU_FORMAT if size >= 8 << 30 else tarfile.USTAR_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def member(name: str = NAME, content: bytes = TEXT, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    return block(name, len(content), kind, link) + padded(content)


END = bytes(1024)


def extended(key: str, value: str) -> bytes:
    """An extended header with one entry."""
    entry = f" {key}={value}\n"
    length = len(entry) + len(str(len(entry) + 2))
    return member("x", f"{length}{entry}".encode(), tarfile.XHDTYPE)


BAD = [
    (b"", "holds no record|ends too early"),
    (END, "holds no record"),
    (member(), "ends too early"),
    (member()[:700], "ends too early"),
    (member() + b"x" * 512 + END, "cannot be read as an archive"),
    (member() + member() + END, "occurs twice"),
    (member() + member(OTHER.run + "/steps.jsonl", b"") + member(OTHER.run + "/steps.jsonl", b"") + END, "occurs twice"),
    (member("../evil") + END, "unexpected member '../evil'"),
    (member("/etc/passwd") + END, "unexpected member '/etc/passwd'"),
    (member(f"{GOOD.run}/../{GOOD.run}/record.json") + END, "unexpected member"),
    (member(f"./{NAME}") + END, "unexpected member"),
    (member(f"{NAME}\n") + END, "unexpected member"),
    (member(NAME.upper()) + END, "unexpected member"),
    (member(f"{GOOD.run}/config.json") + END, "unexpected member"),
    (member("a" * 90) + END, "unexpected member"),
    (member(kind=tarfile.SYMTYPE, content=b"", link="/etc/passwd") + END, "unexpected member .*: a link"),
    (member(kind=tarfile.LNKTYPE, content=b"", link=NAME) + END, "unexpected member .*: a hard link"),
    (member(kind=tarfile.CHRTYPE, content=b"") + END, "unexpected member .*: a device"),
    (member(kind=tarfile.FIFOTYPE, content=b"") + END, "unexpected member .*: a FIFO"),
    (member(kind=tarfile.DIRTYPE, content=b"") + END, "unexpected member .*: a folder"),
    (member(kind=b"Z") + END, "unexpected member .*: of an unknown kind"),
    (member("x", b"n" * 200, tarfile.GNUTYPE_LONGNAME) + member() + END, "unexpected member .*: a long name"),
    (member(kind=tarfile.GNUTYPE_SPARSE) + END, "unexpected member .*: a file with holes"),
    (member("x", b"12 path=abc\n", tarfile.XGLTYPE) + member() + END, "a header for all members"),
    (extended("path", "../../evil") + member() + END, "header 1 gives the next member another path"),
    (extended("linkpath", "x") + member() + END, "another linkpath"),
    (extended("size", "99999999999") + member() + END, "another size"),
    (extended("GNU.sparse.major", "1") + member() + END, "another GNU.sparse.major"),
    (member("x", b"99 mtime=1\n", tarfile.XHDTYPE) + member() + END, "header 1 is damaged"),
    (member("x", b"0 a=\n", tarfile.XHDTYPE) + member() + END, "header 1 is damaged"),
    (member("x", b"nonsense", tarfile.XHDTYPE) + member() + END, "header 1 is damaged"),
    (block("x", 2 << 30, tarfile.XHDTYPE) + bytes(1 << 20), "at most 16384 bytes"),
    (block(NAME, 9 << 20) + bytes(9 << 20) + END, "of 9437184 bytes"),
    (block(NAME, 8 << 30) + b"x" * 4096, "bytes each"),
    (member() + END + member(OTHER.run + "/record.json"), "something follows its last member"),
    (b"".join(block(f"{i:012x}/steps.jsonl", 1 << 20) + bytes(1 << 20) for i in range(30)) + END, "more than 100 times its size"),
]


@pytest.mark.parametrize(("content", "says"), BAD)
def test_an_archive_that_is_not_of_our_making_files_nothing(tree, content, says):
    path = tree / "x.tar.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DpbenchError, match=says) as caught:
        recording.merge(path)
    assert caught.value.what.startswith(f"{path}: ")
    assert caught.value.hint
    assert not (tree / "results").exists()


WHOLE = gzip.compress(member() + END)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 2],
        WHOLE[:-8] + bytes(4) + WHOLE[-4:],
        WHOLE[:-4] + b"\x01\0\0\0",
        WHOLE + b"garbage",
        WHOLE + WHOLE,
        member() + END,
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_a_damaged_stream_files_nothing(tree, content):
    path = tree / "x.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DpbenchError, match=r"x\.tar\.gz: (cannot be read as an archive|something follows its end)"):
        recording.merge(path)
    assert not (tree / "results").exists()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tree, make):
    make(tree / "x.tar.gz")
    with pytest.raises(DpbenchError, match=r"x\.tar\.gz: .*, not a file"):
        recording.merge(tree / "x.tar.gz")


def test_the_number_of_members_and_their_sum_are_limited(tree, monkeypatch):
    path = tree / "x.tar.gz"
    path.write_bytes(gzip.compress(b"".join(member(f"{i:012x}/record.json", b"{}") for i in range(9)) + END))
    monkeypatch.setattr(archives, "MEMBERS", 3)
    with pytest.raises(DpbenchError, match="more than 3 members"):
        unpack(path, tree)
    monkeypatch.setattr(archives, "MEMBERS", 20)
    monkeypatch.setattr(archives, "TOTAL", 4096)
    with pytest.raises(DpbenchError, match="unpacks to more than"):
        unpack(path, tree)


def test_archives_that_tarfile_and_tar_write_are_taken(tree):
    """With the extended headers that Python's tarfile writes for fractions of seconds."""
    path = tree / "x.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(NAME)
        info.size, info.mtime = len(TEXT), 1700000000.25
        archive.addfile(info, io.BytesIO(TEXT))
    assert b"mtime=" in gzip.decompress(path.read_bytes())
    assert recording.merge(path)[0].startswith(f"{GOOD.run}: filed in results/recorded/cpu-2-cores/other.jsonl")
    (stored,) = recorded_records()
    assert stored.record == GOOD


def spoiled(change, base: Record = OTHER) -> bytes:
    values = json.loads(record_text(base))
    change(values)
    return json.dumps(values).encode()


WRONG = [
    ({}, "has no record.json"),
    ({"record.json": b"{"}, "not a complete JSON file"),
    ({"record.json": b"\xff"}, "not UTF-8"),
    ({"record.json": TEXT}, f"is the record of run {GOOD.run}, in the folder of run"),
    ({"record.json": spoiled(lambda v: v["metrics"][0].update(value=99.0))}, "does not fit its digest"),
    ({"record.json": spoiled(lambda v: v["config"].update(seed=3))}, "its config hashes to"),
    ({"record.json": spoiled(lambda v: v.pop("digest"))}, "no digest"),
    ({"record.json": b'{"schema_version": 2, "facts": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"}, "recursion limit"),
    (
        {"record.json": record_text(asked_by("no", "no")).encode()},
        "asks for the table no/no",
    ),
    (
        {
            "record.json": record_text(
                other(requests=[{"paper": "automatic", "table": "no", "tier": "smoke", "key": "0" * 12}])
            ).encode()
        },
        "asks for the table automatic/no",
    ),
    ({"record.json": record_text(OTHER).encode(), "steps.jsonl": b'{"step": 1}\n{'}, "steps.jsonl line 2 is not JSON"),
    ({"record.json": record_text(OTHER).encode(), "steps.jsonl": b'{"loss": NaN}\n'}, "steps.jsonl line 1 is not JSON"),
    ({"record.json": record_text(OTHER).encode(), "steps.jsonl": b"[" * 10**5 + b"]" * 10**5}, "steps.jsonl line 1 is not JSON"),
    ({"record.json": record_text(OTHER).encode(), "steps.jsonl": b"\xff"}, "steps.jsonl: line 1 is not UTF-8"),
]


@pytest.mark.parametrize(("files", "says"), WRONG)
def test_a_bad_record_is_named_and_the_others_are_filed(tree, capsys, files, says):
    path = tree / "x.tar.gz"
    files = files or {"steps.jsonl": b""}
    bad = "0" * 12 if files.get("record.json") == TEXT else OTHER.run
    members = [(NAME, TEXT, 0.0), *((f"{bad}/{name}", content, 0.0) for name, content in files.items())]
    path.write_bytes(pack_files(members))
    left_out: list[LeftOut] = []
    (line,) = recording.merge(path, left_out)
    assert line.startswith(f"{GOOD.run}: filed in")
    assert [stored.record for stored in recorded_records()] == [GOOD]
    (item,) = left_out
    assert (item.run, says in item.why) == (bad, True), item.why
    assert item.where == f"{path}: {bad}/record.json"
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert str(path) in stderr


def test_the_command_says_what_it_left_out_by_its_exit_code(tree, capsys):
    path = tree / "x.tar.gz"
    path.write_bytes(pack_files([(NAME, TEXT, 0.0), (f"{OTHER.run}/record.json", b"{", 0.0)]))
    assert main(["record", "--merge", str(path)]) == 2
    output = capsys.readouterr()
    assert f"{GOOD.run}: filed in" in output.out
    assert OTHER.run in output.err
    assert "1 record was not filed" in output.err
    path.write_bytes(pack_files([(NAME, TEXT, 0.0)]))
    assert main(["record", "--merge", str(path)]) == 0
    assert "filed already" in capsys.readouterr().out


def test_a_sound_record_replaces_a_filed_bad_one(tree):
    path = tree / "x.tar.gz"
    path.write_bytes(pack_files([(NAME, TEXT, 0.0)]))
    recording.merge(path)
    (stored,) = recorded_records()
    stored.path.write_text(stored.path.read_text().replace("1.5", "99.5"))
    assert list(recorded_records()) == []
    assert "filed in" in recording.merge(path)[0]
    assert [stored.record for stored in recorded_records()] == [GOOD]


_MERGE = "import sys; from dpbench.cli import main; sys.exit(main(['record', '--merge', sys.argv[1]]))"


def bomb(path: Path) -> None:
    with gzip.open(path, "wb", 1) as handle:
        for i in range(24):
            handle.write(block(f"{i:012x}/steps.jsonl", 8 << 20) + bytes(8 << 20))


def long_header(path: Path) -> None:
    with gzip.open(path, "wb", 1) as handle:
        handle.write(block("x", 1 << 30, tarfile.XHDTYPE))
        for _ in range(64):
            handle.write(b"0" * (1 << 20))


def long_gzip_name(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (32 << 20))


@pytest.mark.parametrize("make", [bomb, long_header, long_gzip_name])
def test_no_archive_takes_much_memory(tree, make):
    path = tree / "x.tar.gz"
    make(path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

    words = [sys.executable, "-c", _MERGE, str(path)]
    one = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each thread has a stack
    done = subprocess.run(words, preexec_fn=limit, env=one, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr[-500:]
    assert done.stderr.startswith(f"error: {path}: ")
    assert "Traceback" not in done.stderr

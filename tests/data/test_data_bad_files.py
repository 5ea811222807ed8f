"""Files that are no data, folders that are no folders, caches that cannot be written: one error that says what is there."""

from __future__ import annotations

import gzip
import io
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from dpbench import paths
from dpbench.data import cache_tables, digests, file_kinds, local, registry, tabular, tokenizer
from dpbench.errors import DpbenchError
from dpbench.files import sha256_file

GOOD = {"sentence": ["good", "bad"], "label": [1, 0]}


def parquet_bytes(columns=None, **options):
    buffer = io.BytesIO()
    table = columns if isinstance(columns, pa.Table) else pa.table(GOOD if columns is None else columns)
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def feather():
    buffer = io.BytesIO()
    pa.feather.write_feather(pa.table(GOOD), buffer)
    return buffer.getvalue()


def numpy_file():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


WHOLE = parquet_bytes()
FOOTER = len(WHOLE) - 8 - int.from_bytes(WHOLE[-8:-4], "little")
NO_PARQUET = {
    "empty": (b"", "an empty file", "fetch"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS", "git lfs pull"),
    "an HTML page": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page", "fetch"),
    "an HTML page after lines": (b"\n\n <HTML><head>", "an HTML page", "fetch"),
    "an XML error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document", "fetch"),
    "gzip": (gzip.compress(WHOLE), "a gzip archive", "gunzip"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive", "unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "a zstd archive", "unzstd"),
    "xz": (b"\xfd7zXZ\0" + bytes(40), "an xz archive", "unxz"),
    "bzip2": (b"BZh9" + bytes(40), "a bzip2 archive", "bunzip2"),
    "the first half": (WHOLE[: len(WHOLE) // 2], "the first part of a Parquet file", "fetch"),
    "all but the last byte": (WHOLE[:-1], "the first part of a Parquet file", "fetch"),
    "the last half": (WHOLE[len(WHOLE) // 2 :], "not a readable Parquet file", "fetch"),
    "PAR1 alone": (b"PAR1", "not a readable Parquet file", "fetch"),
    "PAR1 twice": (b"PAR1PAR1", "not a readable Parquet file", "fetch"),
    "a footer of zeros": (WHOLE[:FOOTER] + bytes(32) + WHOLE[FOOTER + 32 :], "not a readable Parquet file", "fetch"),
    "a footer too long": (WHOLE[:-8] + b"\xff\xff\xff\x7fPAR1", "not a readable Parquet file", "fetch"),
    "zeros": (bytes(5000), "a file of zero bytes", "fetch"),
    "encrypted": (b"PARE" + bytes(40) + b"PARE", "an encrypted Parquet file", "without encryption"),
    "CSV": (b"sentence,label\ngood,1\n", "comma-separated text", r"pyarrow\.csv\.read_csv"),
    "CSV with a mark": ("\ufeffsentence,label\ngood,1\n".encode(), "comma-separated text", r"pyarrow\.csv\.read_csv"),
    "CSV in Latin-1": ("sentence,label\ncafé,1\n".encode("latin-1"), "comma-separated text", r"pyarrow\.csv\.read_csv"),
    "CSV in UTF-16": ("sentence,label\ngood,1\n".encode("utf-16"), "text in UTF-16", "UTF-8"),
    "TSV": (b"sentence\tlabel\ngood, or so\t1\n", "tab-separated text", "delimiter"),
    "JSON lines": (
        b'{"sentence": "good", "label": 1}\n{"sentence": "bad", "label": 0}\n',
        "JSON lines",
        r"pyarrow\.json\.read_json",
    ),
    "JSON": (b'[{"sentence": "good", "label": 1}]', "JSON, not Parquet", "from_pylist"),
    "indented JSON": (b'{\n "data": []\n}', "JSON, not Parquet", "from_pylist"),
    "text": (b"good\n", "text, not Parquet", "fetch"),
    "Feather": (feather(), r"an Arrow .Feather. file", r"feather\.read_table"),
    "NumPy": (numpy_file(), "a NumPy array", "Parquet"),
    "SQLite": (b"SQLite format 3\0" + bytes(100), "an SQLite database", "Parquet"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image", "Parquet"),
    "a pickle": (b"\x80\x04\x95\x00\x00\x00", "not a readable Parquet file", "fetch"),
}


@pytest.mark.parametrize("case", NO_PARQUET)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_that_is_no_parquet_is_said_to_be_what_it_is(case, split, put):
    content, what, hint = NO_PARQUET[case]
    file = put("sst2", others=GOOD, **{split: content})
    source = registry.resolve("sst2", "local")
    for act in (lambda: registry.load("sst2", "train", source), lambda: registry.check("sst2", source)):
        with pytest.raises(DpbenchError, match=f"not a readable Parquet file .*{what}|{what}") as caught:
            act()
        assert str(file) in caught.value.what
        assert re.search(hint, caught.value.hint)


NO_ROWS = {
    "zero rows": pa.table(GOOD).slice(0, 0),
    "a schema alone": pa.schema([("sentence", pa.string()), ("label", pa.int64())]).empty_table(),
}


@pytest.mark.parametrize("case", NO_ROWS)
def test_a_file_without_rows_is_refused(case, put):
    file = put("sst2", others=GOOD, validation=NO_ROWS[case])
    with pytest.raises(DpbenchError, match=f"{re.escape(str(file))}: no rows"):
        registry.load("sst2", "train", registry.resolve("sst2"))


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_every_usual_compression_is_read(codec, put):
    put("sst2", train=parquet_bytes(compression=codec, row_group_size=1))
    assert registry.load("sst2", "train", registry.resolve("sst2")).columns == {"text": ["good", "bad"], "label": [1, 0]}


def test_bytes_changed_inside_a_page_never_give_other_values(put):
    """Each byte of the texts in a file with page checksums, changed in turn."""
    content = parquet_bytes(write_page_checksum=True, compression="none")
    file = put("sst2", others=GOOD, train=content)
    start = content.index(b"good")
    for at in range(start - 4, start + 11):
        changed = bytearray(content)
        changed[at] ^= 0x15
        file.write_bytes(bytes(changed))
        with pytest.raises(DpbenchError, match=r"train\.parquet: damaged, or cannot be read"):
            tabular.read(file, {"text": "sentence", "label": "label"})


def test_a_dictionary_that_expands_to_gigabytes_is_refused(put):
    """One text of 900 KB in 10,000 rows: a file of kilobytes that stands for 9 GB."""
    table = pa.table({"sentence": pa.DictionaryArray.from_arrays(pa.array([0] * 10_000), ["x" * 900_000])})
    content = parquet_bytes(table, store_schema=False, compression="zstd")
    assert len(content) < 10**5
    file = put("sst2", others=GOOD, train=content)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    with pytest.raises(DpbenchError, match="are the most that is read"):
        tabular.read(file, {"text": "sentence"})
    assert pool.max_memory() - before < 2**30


def test_too_many_rows_are_refused_by_the_footer_alone(put, monkeypatch):
    file = put("sst2", others=GOOD, train={"sentence": ["a"] * 1000, "label": [0, 1] * 500})
    monkeypatch.setattr(tabular, "_ALWAYS", 1000)
    monkeypatch.setattr(tabular, "_TIMES", 1)
    with pytest.raises(DpbenchError, match=r"bytes that take [\d,]+ or more in memory"):
        tabular.check(file, {"text": "sentence"})


def test_a_file_of_another_format_is_named_with_the_conversion(put):
    file = put("sst2", train=GOOD)
    file.unlink()
    for other, hint in [
        ("train.csv", "read_csv"),
        ("train.tsv", "delimiter"),
        ("train.jsonl", "read_json"),
        ("train-00000-of-00002.parquet", "join the 1 parts into one file"),
        ("train.parquet.gz", "unpack"),
    ]:
        beside = file.with_name(other)
        beside.write_bytes(b"x")
        with pytest.raises(DpbenchError, match=r"train\.parquet: missing \(sst2, split 'train'\)") as caught:
            registry.resolve("sst2", "local")
        assert other in caught.value.hint
        assert hint in caught.value.hint
        beside.unlink()


def test_a_folder_in_place_of_a_file_is_told(put):
    file = put("sst2", train=GOOD)
    file.unlink()
    file.mkdir()
    with pytest.raises(DpbenchError, match=r"train\.parquet: is a folder, not a file"):
        registry.resolve("sst2", "local")
    (file / "part-0.parquet").write_bytes(WHOLE)
    with pytest.raises(DpbenchError, match=r"train\.parquet: is a folder of Parquet files") as caught:
        registry.resolve("sst2")
    assert "join them" in caught.value.hint


def test_links_that_lead_nowhere_or_in_a_circle(put):
    file = put("sst2", train=GOOD)
    file.unlink()
    file.symlink_to(file.with_name("nowhere"))
    with pytest.raises(DpbenchError, match=r"train\.parquet: a link to a file that is not there"):
        registry.resolve("sst2", "local")
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(DpbenchError, match=r"train\.parquet: a link to a file that is not there"):
        registry.resolve("sst2", "local")


def test_a_link_to_a_good_file_is_followed(put):
    file = put("sst2", train=GOOD)
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))
    assert registry.load("sst2", "train", registry.resolve("sst2")).columns["label"] == [1, 0]


@pytest.mark.parametrize("value", ["~nobody-of-this-name/data", "x" * 5000, "/dev/null", "/dev/null/below", "nul\u0000inside"])
def test_a_data_folder_that_is_none(value, monkeypatch):
    if "\0" in value:
        monkeypatch.setattr(os, "environ", os.environ | {"DPBENCH_DATA": value})
    else:
        monkeypatch.setenv("DPBENCH_DATA", value)
    with pytest.raises(DpbenchError, match=r"^DPBENCH_DATA=") as caught:
        registry.resolve("sst2")
    assert "data_folder" in caught.value.hint


@pytest.mark.parametrize("value", ["~nobody-of-this-name/models", "x" * 5000, "/dev/null"])
def test_a_model_folder_that_is_none(value, monkeypatch):
    from dpbench.models import sources

    monkeypatch.setenv("DPBENCH_MODELS", value)
    with pytest.raises(DpbenchError, match=r"^DPBENCH_MODELS=") as caught:
        sources.resolve("minilm", "local")
    assert "model_folder" in caught.value.hint


def forbidden(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_folder_or_file_that_may_not_be_read(put, monkeypatch):
    """Root may read everything, so the refusal is put in place of the system's."""
    put("sst2", train=GOOD)
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.is_file", forbidden)
        with pytest.raises(DpbenchError, match=r"cannot be read \(Permission denied\)"):
            registry.resolve("sst2", "local")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.iterdir", forbidden)
        with pytest.raises(DpbenchError, match=r"DPBENCH_DATA=.*: Permission denied"):
            registry.resolve("sst2", "local")
    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256_file", forbidden)
        with pytest.raises(DpbenchError, match=r"train\.parquet: cannot be read \(Permission denied\)"):
            registry.resolve("sst2", "local")


def test_a_change_that_keeps_size_and_time_is_noticed(put):
    file = put("sst2", train=GOOD)
    source = registry.resolve("sst2")
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[content.index(b"good")] = ord("f")
    file.write_bytes(bytes(content))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    with pytest.raises(DpbenchError, match=r"train\.parquet: changed since the runs were named"):
        registry.load("sst2", "train", source)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe", "line 1 starts with a byte-order mark"),
        (b"x" * 64 + b"  train.parquet\n", "line 1 is not"),
        (b"\n" + b"0" * 64 + b"\n", "line 2 is not"),
        (b"\xef\xbb\xbf" + b"0" * 64 + b"  train.parquet\n", "sha256 differs"),
    ],
)
def test_a_list_of_checksums_that_cannot_be_used(content, says, put):
    file = put("sst2", train=GOOD)
    (file.parent / "SHA256SUMS").write_bytes(content)
    with pytest.raises(DpbenchError, match=f"SHA256SUMS.*{says}|{says}"):
        registry.resolve("sst2")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": 3}', b"null"])
def test_a_cache_that_cannot_be_used_costs_time_and_no_more(content, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    cache = tmp_path / "cache"
    if content is None:
        cache.write_text("a file in the folder's place")
    else:
        cache.mkdir()
        for name in ("digests.json", "hub.json"):
            (cache / name).write_bytes(content)
    monkeypatch.setattr(digests, "_known", {})
    assert digests.digest(file, persist=True) == sha256_file(file)
    cache_tables.add("hub.json", {"a": "b"})
    assert cache_tables.read("hub.json") == ({} if content is None else {"a": "b"})
    built_tokenizer, sha256 = tokenizer.bpe("wikitext2", 300, registry.resolve("wikitext2", "embedded"), "test")
    assert built_tokenizer.get_vocab_size() == 300
    assert len(sha256) == 64


def test_a_digest_that_was_stored_wrong_is_not_taken(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    monkeypatch.setattr(digests, "_known", {})
    cache_tables.add("digests.json", {digests._key(file): "z" * 64})
    assert digests.digest(file, persist=True) == sha256_file(file)
    assert cache_tables.read("digests.json")[digests._key(file)] == sha256_file(file)
    assert paths.cache().is_dir()


def test_what_a_file_is_never_raises(tmp_path):
    assert file_kinds.described(tmp_path / "nowhere")[0] == ""
    assert file_kinds.described(tmp_path)[0] == "a folder, not a file"
    assert local.folder_of("X", str(tmp_path), "x") == tmp_path

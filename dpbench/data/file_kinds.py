"""The kind of a file that is not of the kind that it should be, and how to convert it."""

from __future__ import annotations

import json
from pathlib import Path

AGAIN = "fetch the file again"
_HEAD = 4096
_BINARY = {
    b"PARE": ("an encrypted Parquet file", "write it again without encryption"),
    b"\x1f\x8b": ("a gzip archive", "unpack it with gunzip"),
    b"PK\x03\x04": ("a zip archive", "unpack it, then write its table as Parquet"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "unpack it with unzstd"),
    b"BZh": ("a bzip2 archive", "unpack it with bunzip2"),
    b"\xfd7zXZ": ("an xz archive", "unpack it with unxz"),
    b"ARROW1": (
        "an Arrow (Feather) file",
        "write it as Parquet: `pyarrow.parquet.write_table(pyarrow.feather.read_table(OLD), NEW)`",
    ),
    b"\x93NUMPY": ("a NumPy array", "write it as Parquet with the columns of the dataset"),
    b"SQLite format 3": ("an SQLite database", "write its table as Parquet"),
    b"\x89HDF": ("an HDF5 file", "write its table as Parquet"),
    b"\x89PNG": ("a PNG image", "write the images as a column of a Parquet file"),
    b"ORC": ("an ORC file", "write it as Parquet: `pyarrow.parquet.write_table(pyarrow.orc.read_table(OLD), NEW)`"),
    b"Obj\x01": ("an Avro file", "write it as Parquet"),
}
FROM_CSV = "write it as Parquet: `pyarrow.parquet.write_table(pyarrow.csv.read_csv(OLD), NEW)`"
FROM_TSV = (
    "write it as Parquet: "
    "`pyarrow.parquet.write_table(pyarrow.csv.read_csv(OLD, parse_options=pyarrow.csv.ParseOptions(delimiter='\\t')), NEW)`"
)
FROM_JSON_LINES = "write it as Parquet: `pyarrow.parquet.write_table(pyarrow.json.read_json(OLD), NEW)`"
FROM_JSON = "write it as Parquet: `pyarrow.parquet.write_table(pyarrow.Table.from_pylist(json.load(open(OLD))), NEW)`"


def reason_of(error: BaseException) -> str:
    """Return the first line of an error of a library."""
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


def described(path: Path, expected: str = "Parquet") -> tuple[str, str]:
    """Return (the kind of the file, a hint), by its first and last bytes; ("", "fetch the file again") where the kind is unknown.

    Never raises: the caller has an error that says why the file cannot be read.

    Args:
        expected: the kind that it should be. Of a kind of text, any text that may be it counts as unknown.
    """
    try:
        if path.is_dir():
            return _folder(path)
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
            size = path.stat().st_size
            handle.seek(max(0, size - 4))
            tail = handle.read(4)
    except (OSError, ValueError):
        return "", "see that the file is there and readable"
    if not head:
        return "an empty file", AGAIN
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file", "fetch the file itself with `git lfs pull`"
    if head.startswith(b"PAR1"):
        if expected != "Parquet":
            return "a Parquet file", "give it the suffix .parquet, and name it so in `files`"
        if tail == b"PARE":
            return _BINARY[tail]
        return "" if tail == b"PAR1" else "the first part of a Parquet file: its end is missing", AGAIN
    for magic, kind_and_hint in _BINARY.items():
        if head.startswith(magic):
            return kind_and_hint
    if not head.strip(b"\0"):
        return "a file of zero bytes (a download that was broken off)", AGAIN
    return _text(head, expected)


def _folder(path: Path) -> tuple[str, str]:
    if any(path.glob("*.parquet")):
        join = "`pyarrow.parquet.write_table(pyarrow.parquet.read_table(FOLDER), NEW)`"
        return "a folder of Parquet files", f"join them into one file: {join}"
    return "a folder, not a file", "put the Parquet file in its place"


def _text(head: bytes, expected: str) -> tuple[str, str]:
    """Return the kind of a text and a hint, by the beginning of the text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"text in UTF-16, not {expected}", "write it as UTF-8" + (", then as Parquet" if expected == "Parquet" else "")
    if b"\0" in head:
        return "", AGAIN
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    lower = text[:200].lower()
    if lower.startswith(("<!doctype", "<html", "<?xml", "<error")):
        page = "an XML document" if lower.startswith(("<?xml", "<error")) else "an HTML page"
        return f"{page}, not {expected} (often the error page of a download)", AGAIN
    first = text.splitlines()[0] if text else ""
    if expected != "Parquet":
        return _other_text(first, expected)
    if first.startswith("{"):
        return _json_object(first)
    if first.startswith("["):
        return "JSON, not Parquet", FROM_JSON
    if first.count("\t") and text.isprintable() is False:
        return "tab-separated text, not Parquet", FROM_TSV
    if "," in first and "\ufffd" not in first:
        return "comma-separated text, not Parquet", FROM_CSV
    return ("", AGAIN) if "\ufffd" in text else ("text, not Parquet", AGAIN)


def _other_text(first: str, expected: str) -> tuple[str, str]:
    """Return the kind of a text that should be `expected`, a kind of text, by its first line."""
    lines = expected == "JSON lines"
    if lines and first and not first.startswith("{"):
        kind = "one JSON list" if first.startswith("[") else "text"
        return f"{kind}, not JSON lines", "write one object a line; for CSV, give it the suffix .csv"
    if not lines and first.startswith("{") and _json_object(first)[0].startswith("JSON lines"):
        return f"JSON lines, not {expected}", "give it the suffix .jsonl, and name it so in `files`"
    return "", AGAIN


def _json_object(first: str) -> tuple[str, str]:
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return "JSON, not Parquet", FROM_JSON
    return "JSON lines, not Parquet", FROM_JSON_LINES


def instead_of(path: Path) -> str:
    """Return a hint about a missing file that is there with another suffix or in parts; else empty."""
    hint_of_suffix = {".csv": FROM_CSV, ".tsv": FROM_TSV, ".jsonl": FROM_JSON_LINES, ".json": FROM_JSON, ".parquet": ""}
    for ending, hint in hint_of_suffix.items():
        sibling = path.with_suffix(ending)
        if sibling != path and sibling.is_file():
            name_it = "" if ending == ".json" else f"name it in `files` of the dataset{' or ' if hint else ''}"
            return f"{sibling.name} is there; {name_it}{hint}"
    parts = sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))
    if parts:
        join = "`pyarrow.parquet.write_table(pyarrow.parquet.read_table(PARTS), NEW)`"
        return f"{parts[0].name} is there; join the {len(parts)} parts into one file: {join}"
    archives = [sibling for sibling in path.parent.glob(f"{path.name}.*") if sibling.is_file()]
    return f"{archives[0].name} is there; unpack it" if archives else ""

"""Rows in files of text: CSV, tab-separated text and JSON lines, as an Arrow table with the types that a dataset needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from dpbench.data import file_kinds
from dpbench.data.file_kinds import reason_of
from dpbench.data.remarks import row_name
from dpbench.errors import DpbenchError

if TYPE_CHECKING:
    import pyarrow as pa


_NAMES = {".csv": "CSV", ".tsv": "tab-separated text", ".jsonl": "JSON lines"}
_QUOTES = 'write a text with a separator, quote or end of line in "quotes", and a quote inside it twice'
_LARGEST = 2**31 - 2
"""Bytes of a file: Arrow reads it as one block, so that it knows the numbers of its rows."""
_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_BOOLEANS = {"true": 1, "false": 0}


def read(path: Path, columns: dict[str, str]) -> pa.Table:
    """Return the rows as an Arrow table: texts as strings, class numbers as integers. An empty field of a CSV is a missing value.

    Texts of a CSV are not checked to be UTF-8: who reads them does that, and knows their row.

    Args:
        columns: canonical name -> column of the file.

    Raises:
        DpbenchError: the file is not of the kind that its suffix says; a line has fewer or more fields than the header; a label
            is no number. The error names the row.
    """
    name = _NAMES[path.suffix]
    kind, hint = file_kinds.described(path, name)
    if kind:
        raise DpbenchError(f"{path}: not a readable file of {name} (it is {kind})", hint)
    if (size := path.stat().st_size) > _LARGEST:
        raise DpbenchError(f"{path}: {size:,} bytes, and {_LARGEST:,} are the most that is read of {name}", "write it as Parquet")
    return _json_lines(path, columns) if path.suffix == ".jsonl" else _separated(path, columns)


def _separated(path: Path, columns: dict[str, str]) -> pa.Table:
    """Return the table of a CSV or of tab-separated text."""
    import pyarrow as pa
    from pyarrow import csv

    separator = "\t" if path.suffix == ".tsv" else ","
    parsing = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    reading = csv.ReadOptions(use_threads=False, block_size=path.stat().st_size + 1)
    try:
        with csv.open_csv(path, read_options=reading, parse_options=parsing) as reader:
            names = reader.schema.names
        converting = csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(names, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        table = csv.read_csv(path, read_options=reading, parse_options=parsing, convert_options=converting)
    except UnicodeDecodeError as error:
        raise DpbenchError(f"{path}: the names of the columns are not UTF-8", "save the file as UTF-8") from error
    except Exception as error:  # the reader's errors have no common base
        what = f"{path}: not a readable file of {_NAMES[path.suffix]} ({reason_of(error)})"
        if ragged := _RAGGED.search(str(error)):  # pyarrow counts the header as row 1
            what = f"{path}: {row_name(int(ragged[1]) - 2)} has {ragged[3]} fields, and the header {ragged[2]}"
        raise DpbenchError(what, _QUOTES) from error
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise DpbenchError(f"{path}: its columns are separated by {other!r}, not by {separator!r}", "save it as CSV with commas")
    canonical_of = {column: canonical for canonical, column in columns.items()}
    arrays = []
    for column, values in zip(names, table.columns, strict=True):
        array = values.combine_chunks().view(pa.string())
        is_label = canonical_of.get(column, "").startswith("label")
        arrays.append(_class_numbers(array, f"{path}: column {column!r}") if is_label else array)
    return pa.Table.from_arrays(arrays, names=names)


def _class_numbers(values: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Return texts as integers; `true` and `false`, in any case, are 1 and 0."""
    import pyarrow as pa

    numbers: list[int | None] = []
    for index, value in enumerate(values.view(pa.binary()).to_pylist()):
        if value is None:
            numbers.append(None)
            continue
        text = value.decode("utf-8", errors="replace").strip()
        number = _BOOLEANS.get(text.lower())
        if number is None:
            if re.fullmatch(r"[+-]?[0-9]{1,30}", text) is None:
                hint = "give labels as integers from 0, in the order of `classes`"
                raise DpbenchError(f"{where}: {text[:40]!r} in {row_name(index)} is no class number", hint)
            number = int(text)
        numbers.append(within_64_bits(number, where, index))
    return pa.array(numbers, pa.int64())


def within_64_bits(number: int, where: str, index: int) -> int:
    """Return a label.

    Args:
        where: file and column, for the error.
        index: of the row, from 0.

    Raises:
        DpbenchError: it is no signed integer of 64 bits; names its row.
    """
    if not -(2**63) <= number < 2**63:
        raise DpbenchError(f"{where}: label {number} in {row_name(index)} is beyond 64 bits", "give labels as integers from 0")
    return int(number)


def _json_lines(path: Path, columns: dict[str, str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import json

    reading = json.ReadOptions(use_threads=False, block_size=path.stat().st_size + 1)
    texts = [column for canonical, column in columns.items() if canonical.startswith("text")]
    try:
        table = json.read_json(path, read_options=reading)
        dates = [field.name for field in table.schema if field.name in texts and pa.types.is_temporal(field.type)]
        if dates:  # texts that look like dates
            parsing = json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in dates]))
            table = json.read_json(path, read_options=reading, parse_options=parsing)
    except Exception as error:  # the reader's errors have no common base
        reason = reason_of(error)
        position = re.search(r" in row (\d+)$", reason)
        where = f"{path}: {row_name(int(position[1]))}" if position else str(path)
        what = f"{where} is not JSON lines of one form ({reason.removesuffix(position[0]) if position else reason})"
        raise DpbenchError(
            what, 'write one object a line, such as {"text": "good", "label": 1}, each with the same types'
        ) from error
    return table

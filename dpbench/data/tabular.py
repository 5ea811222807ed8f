"""Files of rows (Parquet, CSV, tab-separated text, JSON lines) with their columns checked.

The columns are right, or one error names file, column and row.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpbench.data import file_kinds, text_files
from dpbench.data.file_kinds import reason_of
from dpbench.data.remarks import row_name
from dpbench.errors import DpbenchError, nearest
from dpbench.plugins.cards import TEXT_FILES

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


_BATCH = 64
"""Rows that are read at once: a text of a megabyte, stored once for thousands of rows, is then at most 64 MiB."""

_ALWAYS = 256 * 2**20
_TIMES = 50
_EACH = 64
"""A file may take `_ALWAYS` bytes and `_TIMES` its size in memory; a row counts `_EACH` bytes beside its values."""

_LISTED = 30
_DROP = "drop those rows, or fetch the file again"
_DROP_TEXT = 'drop those rows; in a CSV, an empty text is written as ""'


def _open(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    file = None
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        _ = file.schema_arrow.names, file.metadata.num_rows
    except Exception as error:  # the reader's errors have no common base: a name that is not UTF-8, memory, a bad footer
        if file is not None:
            file.close()
        kind, hint = file_kinds.described(path)
        reason = f"it is {kind}" if kind else reason_of(error)
        raise DpbenchError(f"{path}: not a readable Parquet file ({reason})", hint) from error
    return file


def _check_schema(path: Path, schema: pa.Schema, columns: dict[str, str]) -> None:
    import pyarrow as pa

    for canonical, column in columns.items():
        if column not in schema.names:
            raise _no_column(path, column, list(schema.names))
        if (occurrences := schema.names.count(column)) > 1:
            count = "twice" if occurrences == 2 else f"{occurrences} times"
            raise DpbenchError(f"{path}: column {column!r} stands {count}", "keep one of them, or give the others another name")
        kind = schema.field(column).type
        if canonical.startswith("label") and not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            what = f"{path}: column {column!r} holds {kind}, not class numbers"
            raise DpbenchError(what, f"give labels as integers from 0{_cast(kind, column, 'int64')}")
        if canonical.startswith("image") and not _holds_bytes(kind):
            what = f"{path}: column {column!r} holds {kind}, not images"
            raise DpbenchError(what, "give images as bytes: PNG, WebP or JPEG, or raw pixels H x W x C of 8 bits")
        if canonical.startswith("text") and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            what = f"{path}: column {column!r} holds {kind}, not text"
            raise DpbenchError(what, f"give texts as strings{_cast(kind, column, 'string')}")


def _cast(kind: pa.DataType, column: str, target: str) -> str:
    """Return how to convert a column whose values are right and whose type is not; else empty."""
    import pyarrow as pa

    text = any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if target == "string":
        fits = text or (pa.types.is_dictionary(kind) and (pa.types.is_string(values) or pa.types.is_large_string(values)))
    else:
        fits = any(test(values) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))
    return f": `table[{column!r}].cast('{target}')`" if fits else ""


def _no_column(path: Path, column: str, names: list[str]) -> DpbenchError:
    printable = [name if name.isprintable() else repr(name)[1:-1] for name in names[:_LISTED]]
    omitted = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    listed = ", ".join(printable) or "none"
    close = difflib.get_close_matches(column, names, n=3, cutoff=0.5) if omitted else names
    return DpbenchError(
        f"{path}: no column {column!r}; its columns: {listed}{omitted}", nearest(column, close or names[:_LISTED])
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a type is binary, or the struct of bytes and path in which the `datasets` library keeps an image."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        parts = [kind.field(i) for i in range(kind.num_fields) if kind.field(i).name == "bytes"]
        return len(parts) == 1 and _holds_bytes(parts[0].type)
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))


def check(path: Path, columns: dict[str, str]) -> int:
    """Check the columns: of a Parquet file by its metadata, without reading values.

    Args:
        columns: canonical name -> name in the file. `label...` must be an integer or a boolean, `text...` a string,
            `image...` bytes.

    Returns:
        The number of rows.

    Raises:
        DpbenchError: the file is unreadable, has no rows or would take too much memory; a column is missing, twice there or of
            the wrong type.
    """
    if path.suffix in TEXT_FILES:
        return int(_text_table(path, columns).num_rows)
    with _open(path) as file:
        _check_table(path, file.schema_arrow, columns, file.metadata.num_rows)
        _check_size(path, _declared(file.metadata) + file.metadata.num_rows * _EACH)
        return int(file.metadata.num_rows)


def _check_table(path: Path, schema: pa.Schema, columns: dict[str, str], rows: int) -> None:
    if schema.names:
        _check_schema(path, schema, columns)
    if rows <= 0:
        raise DpbenchError(f"{path}: no rows", file_kinds.AGAIN)


def _text_table(path: Path, columns: dict[str, str]) -> pa.Table:
    """Return the checked table of a file of text."""
    table = text_files.read(path, columns)
    _check_table(path, table.schema, columns, table.num_rows)
    _check_size(path, table.nbytes + table.num_rows * _EACH)
    return table


def _declared(metadata: pq.FileMetaData) -> int:
    """Return the bytes that the footer states for all columns, before dictionaries are expanded.

    They are summed by row group: pyarrow ends the process where it is asked for a column that a damaged footer does not describe.
    """
    return sum(max(0, metadata.row_group(group).total_byte_size) for group in range(metadata.num_row_groups))


def _check_size(path: Path, size: int) -> None:
    stored = path.stat().st_size
    if size > (limit := _ALWAYS + _TIMES * stored):
        what = f"{path}: {stored:,} bytes that take {size:,} or more in memory; {limit:,} are the most that is read"
        raise DpbenchError(what, "fetch the file again, or write it again in smaller values")


def read(path: Path, columns: dict[str, str], limit: int | None = None) -> dict[str, list[Any]]:
    """Return the columns of the first `limit` rows under their canonical names.

    Raises:
        DpbenchError: as `check`; or a value in any row of the file is missing, not UTF-8 or beyond int64 (the error names it).
    """
    names = list(dict.fromkeys(columns.values()))
    if path.suffix in TEXT_FILES:
        batches: Iterable[pa.RecordBatch] = _text_table(path, columns).select(names).to_batches(max_chunksize=_BATCH)
    else:
        batches = _batches(path, names, check(path, columns))
    values_of_column: dict[str, list[Any]] = {canonical: [] for canonical in columns}
    missing: dict[str, tuple[int, int]] = {}
    done = 0
    for batch in batches:
        for canonical, column in columns.items():
            values = batch.column(column)
            if values.null_count:
                first, count = missing.get(column, (done + values.is_null().index(True).as_py(), 0))
                missing[column] = first, count + values.null_count
            values_of_column[canonical] += _values(canonical, values, f"{path}: column {column!r}", done)
        done += batch.num_rows
    for column, (first, count) in missing.items():
        what = f"{path}: column {column!r} has {count} missing values, the first in {row_name(first)}"
        raise DpbenchError(what, _DROP_TEXT if path.suffix in TEXT_FILES else _DROP)
    return {canonical: values[:limit] for canonical, values in values_of_column.items()}


def _batches(path: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield all rows of a Parquet file in batches.

    Raises:
        DpbenchError: the file is damaged, has a compression that this pyarrow cannot read, or would take too much memory.
    """
    done = size = 0
    with _open(path) as file:
        batches = iter(file.iter_batches(_BATCH, columns=columns))
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # the reader's errors have no common base
                raise DpbenchError(f"{path}: damaged, or cannot be read ({reason_of(error)})", file_kinds.AGAIN) from error
            if batch is None:
                break
            done, size = done + batch.num_rows, size + batch.nbytes + batch.num_rows * _EACH
            _check_size(path, size)
            yield batch
    if done != rows:
        raise DpbenchError(f"{path}: damaged: holds {done} rows, and states {rows}", file_kinds.AGAIN)


def _values(canonical: str, values: pa.Array, where: str, start: int) -> list[Any]:
    """Return the Python values of a piece of a column that begins at row `start`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_struct(kind) and canonical.startswith("image"):
        values = pc.struct_field(values, "bytes")
    try:
        decoded: list[Any] = values.to_pylist()
    except Exception as error:  # UTF-8, and whatever else cannot become a Python value
        raise _bad_value(values, where, start, error) from error
    if canonical.startswith("label"):
        labels = enumerate(decoded, start)
        return [value if value is None else text_files.within_64_bits(value, where, index) for index, value in labels]
    return decoded


def _bad_value(values: pa.Array, where: str, start: int, error: Exception) -> DpbenchError:
    """Return the error about the first row of a piece whose value cannot be read."""

    def readable(index: int) -> bool:
        try:
            values[index].as_py()
        except Exception:
            return False
        return True

    index = next((index for index in range(len(values)) if not readable(index)), 0)
    what, hint = f"cannot be read ({reason_of(error)})", _DROP
    if isinstance(error, UnicodeDecodeError):
        what = f"is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
        hint = "write the texts as UTF-8: `value.decode(its encoding).encode('utf-8')`"
    return DpbenchError(f"{where}: {row_name(start + index)} {what}", hint)


def read_metadata(path: Path, key: str) -> bytes | None:
    """Return the value of a key in the metadata of a Parquet file's schema; None where there is none."""
    if path.suffix in TEXT_FILES:
        return None
    with _open(path) as file:
        metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}
    return metadata.get(key.encode())

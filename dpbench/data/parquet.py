"""Parquet files, read with their columns checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpbench.errors import DpbenchError, nearest


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DpbenchError(f"{path}: not a readable Parquet file ({reason})", "fetch the file again") from error


def _check_schema(path: Path, schema: Any, columns: dict[str, str]) -> None:
    import pyarrow as pa

    for canonical, column in columns.items():
        if column not in schema.names:
            raise DpbenchError(
                f"{path}: no column {column!r}; its columns: {', '.join(schema.names)}", nearest(column, schema.names)
            )
        kind = schema.field(column).type
        if canonical.startswith("label") and not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise DpbenchError(f"{path}: column {column!r} holds {kind}, not class numbers", "give labels as integers from 0")
        if canonical.startswith("image") and not _holds_bytes(kind):
            raise DpbenchError(f"{path}: column {column!r} holds {kind}, not images", "give images as bytes, raw or encoded")
        if canonical.startswith("text") and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DpbenchError(f"{path}: column {column!r} holds {kind}, not text", "give texts as strings")


def _holds_bytes(kind: Any) -> bool:
    """Binary, or the struct of bytes and path in which the `datasets` library keeps an image."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary))


def check(path: Path, columns: dict[str, str]) -> int:
    """Check the columns by the file's metadata alone.

    Args:
        columns: canonical name -> name in the file. `label...` must be an integer or yes-or-no, `text...` a string,
            `image...` bytes.

    Returns:
        The number of rows.

    Raises:
        DpbenchError: unreadable, without rows, or a column missing or of the wrong type.
    """
    with _open(path) as file:
        _check_schema(path, file.schema_arrow, columns)
        rows = int(file.metadata.num_rows)
    if rows == 0:
        raise DpbenchError(f"{path}: no rows", "fetch the file again")
    return rows


def read(path: Path, columns: dict[str, str], limit: int | None = None) -> dict[str, list[Any]]:
    """The columns under their canonical names, of the first `limit` rows.

    Raises:
        DpbenchError: as `check`, or a value is missing.
    """
    import pyarrow as pa

    check(path, columns)
    with _open(path) as file:
        try:
            table = file.read(columns=list(dict.fromkeys(columns.values())))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise DpbenchError(f"{path}: damaged ({reason})", "fetch the file again") from error
    for column in table.column_names:
        if nulls := table[column].null_count:
            raise DpbenchError(
                f"{path}: column {column!r} has {nulls} missing values", "drop those rows, or fetch the file again"
            )
    table = table.slice(0, limit)
    return {canonical: _values(canonical, table[column]) for canonical, column in columns.items()}


def _values(canonical: str, column: Any) -> list[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if canonical.startswith("label"):
        return pc.cast(column, pa.int64()).to_pylist()  # type: ignore[no-any-return]
    kind = column.type
    image = pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return (pc.struct_field(column, "bytes") if image else column).to_pylist()

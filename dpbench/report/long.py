"""Write one long table over all records: a row per record and metric, with everything that is needed to interpret the number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpbench.files import canonical_json, write_atomic, write_atomic_with
from dpbench.records.store import Stored
from dpbench.report.cells import csv_text
from dpbench.report.words import source_line

LONG_SCHEMA_VERSION = 1
_TYPES: dict[str, pa.DataType] = {
    "run": pa.string(),
    "machine": pa.string(),
    "requests": pa.string(),
    "job": pa.string(),
    "seed": pa.int64(),
    "labels": pa.string(),
    "metric": pa.string(),
    "value": pa.float64(),
    "unit": pa.string(),
    "low": pa.float64(),
    "high": pa.float64(),
    "rounds": pa.int64(),
    "kind": pa.string(),
    "note": pa.string(),
    "epsilon": pa.float64(),
    "epsilon_rdp": pa.float64(),
    "target_epsilon": pa.float64(),
    "delta": pa.float64(),
    "noise_multiplier": pa.float64(),
    "relation": pa.string(),
    "sampler": pa.string(),
    "validity": pa.string(),
    "reasons": pa.string(),
    "accountants": pa.string(),
    "sources": pa.string(),
    "synthetic": pa.bool_(),
    "device": pa.string(),
    "torch": pa.string(),
    "commit": pa.string(),
    "created": pa.string(),
}
COLUMNS = list(_TYPES)
Row = dict[str, Any]


def _sampler(mechanism: dict[str, Any] | None) -> str | None:
    sampling = (mechanism or {}).get("sampling")
    return sampling.get("kind") if isinstance(sampling, dict) else sampling


def long_rows(stored: Iterable[Stored]) -> list[Row]:
    """Return one row per record and metric; requests, labels and accountants are JSON, unknown values are None."""
    rows = []
    for item in stored:
        record, privacy, environment = item.record, item.record.privacy, item.record.environment
        shared: Row = {
            "run": record.run,
            "machine": item.machine,
            "requests": canonical_json(list(dict.fromkeys(f"{r.paper}/{r.table}/{r.tier}" for r in record.requests))),
            "job": record.config.get("job"),
            "seed": record.config.get("seed"),
            "sampler": _sampler(record.mechanism),
            "sources": "; ".join(source_line(name, source) for name, source in sorted(record.sources.items())),
            "synthetic": record.synthetic,
            "device": environment.device_name or environment.device,
            "torch": environment.packages.get("torch"),
            "commit": environment.commit,
            "created": record.created,
        }
        if privacy is not None:
            names = ("epsilon", "epsilon_rdp", "target_epsilon", "delta", "noise_multiplier", "relation", "validity")
            shared |= {name: getattr(privacy, name) for name in names}
            shared |= {"reasons": "; ".join(privacy.reasons), "accountants": canonical_json(privacy.accountants)}
        for metric in record.metrics:
            values = {name: getattr(metric, name) for name in ("value", "unit", "low", "high", "kind", "note")}
            values |= {"metric": metric.name, "labels": canonical_json(metric.labels), "rounds": len(metric.rounds) or None}
            rows.append(dict.fromkeys(COLUMNS) | shared | values)
    return rows


def write_long(rows: list[Row], csv_path: Path, parquet_path: Path) -> None:
    """Write the rows as CSV and as parquet, each atomically; the parquet's metadata has the schema version.

    Raises:
        DpbenchError: a file cannot be written.
    """
    write_atomic(csv_path, csv_text(COLUMNS, rows))
    schema = pa.schema(list(_TYPES.items()), metadata={"dpbench_long_schema": str(LONG_SCHEMA_VERSION)})
    table = pa.Table.from_pylist(rows, schema=schema)
    write_atomic_with(parquet_path, lambda handle: pq.write_table(table, handle))

"""Write one long table over all records: a row per record and metric, with everything that is needed to interpret the number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pandas import DataFrame

from dpbench.files import canonical_json, write_atomic, write_atomic_with
from dpbench.records.store import Stored
from dpbench.report.cells import csv_text
from dpbench.report.words import source_line

LONG_SCHEMA_VERSION = 1
_DTYPES = {
    "run": "string",
    "machine": "string",
    "requests": "string",
    "job": "string",
    "seed": "Int64",
    "labels": "string",
    "metric": "string",
    "value": "Float64",
    "unit": "string",
    "low": "Float64",
    "high": "Float64",
    "rounds": "Int64",
    "kind": "string",
    "note": "string",
    "epsilon": "Float64",
    "epsilon_rdp": "Float64",
    "target_epsilon": "Float64",
    "delta": "Float64",
    "noise_multiplier": "Float64",
    "relation": "string",
    "sampler": "string",
    "validity": "string",
    "reasons": "string",
    "accountants": "string",
    "sources": "string",
    "synthetic": "boolean",
    "device": "string",
    "torch": "string",
    "commit": "string",
    "created": "string",
}
COLUMNS = list(_DTYPES)
_ARROW = {"string": pa.string(), "Int64": pa.int64(), "Float64": pa.float64(), "boolean": pa.bool_()}
_SCHEMA = pa.schema(
    [(column, _ARROW[dtype]) for column, dtype in _DTYPES.items()],
    metadata={"dpbench_long_schema": str(LONG_SCHEMA_VERSION)},
)


def _sampler(mechanism: dict[str, Any] | None) -> str | None:
    sampling = (mechanism or {}).get("sampling")
    return sampling.get("kind") if isinstance(sampling, dict) else sampling


def long_frame(stored: Iterable[Stored]) -> DataFrame:
    """Return one row per record and metric; requests, labels and accountants are JSON, unknown values are `pandas.NA`."""
    rows = []
    for item in stored:
        record, privacy, environment = item.record, item.record.privacy, item.record.environment
        shared: dict[str, Any] = {
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
            rows.append(shared | values)
    return DataFrame(rows, columns=COLUMNS, dtype=object).astype(_DTYPES)


def write_long(frame: DataFrame, csv_path: Path, parquet_path: Path) -> None:
    """Write the long table as CSV and as parquet, each atomically; the parquet's metadata has the schema version.

    Raises:
        DpbenchError: a file cannot be written.
    """
    write_atomic(csv_path, csv_text(frame))
    write_atomic_with(parquet_path, lambda handle: frame.to_parquet(handle, index=False, schema=_SCHEMA))

"""Write the JSON schemas of the three files that people write or read: config, table, record."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from dpbench.files import write_atomic


def schemas() -> dict[str, str]:
    """Return file name -> text of each schema."""
    # records import spec, so spec's other modules must not need this one
    from dpbench.records.schema import Record
    from dpbench.spec.config import Config
    from dpbench.spec.models import TableSpec

    models: dict[str, type[BaseModel]] = {"config": Config, "table": TableSpec, "record": Record}
    return {f"{name}.schema.json": json.dumps(_schema(model), indent=2) + "\n" for name, model in models.items()}


def _schema(model: type[BaseModel]) -> dict[str, object]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema into `folder`, for editors and readers; they are generated from the pydantic models."""
    written = []
    for name, text in schemas().items():
        write_atomic(folder / name, text)
        written.append(folder / name)
    return written

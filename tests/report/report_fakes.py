"""Small tables, a job that only names its sources, and made-up records for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel

from dpbench.errors import DpbenchError
from dpbench.execution.plan import requests_of
from dpbench.records.schema import Environment, Metric, Privacy, Record, Request
from dpbench.records.store import Stored
from dpbench.spec.expand import Uses, expand
from dpbench.spec.models import TableSpec
from dpbench.spec.sources import Source

REAL = {
    "dataset:sst2": Source(kind="local", files={"train.tsv": "a" * 64}),
    "model:minilm": Source(kind="package", revision="1"),
}
EMBEDDED = {
    "dataset:sst2": Source(kind="embedded", synthetic=True),
    "model:minilm": Source(kind="scratch", synthetic=True),
}
VERSIONS = {"fake": 1}


class Settings(BaseModel, extra="allow"):
    """Whatever a table says."""


def _uses(settings: Settings) -> Uses:
    values = settings.model_dump()
    model = values.get("model")
    return Uses(datasets=("sst2",) if "dataset" in values else (), models=(model,) if model else ())


def fake_get(kind: str, name: str, where: str = "") -> Any:
    module = SimpleNamespace(Settings=Settings, uses=_uses)
    return SimpleNamespace(kind=kind, name=name, version=VERSIONS.get(name, 1), load=lambda: module)


def resolver(sources: dict[str, Source]) -> Any:
    """Answers from `sources` alone."""

    def resolve(kind: str, name: str) -> Source:
        if f"{kind}:{name}" not in sources:
            raise DpbenchError(f"{kind} {name} is not here")
        return sources[f"{kind}:{name}"]

    return resolve


WITHOUT_EPSILON = {"method": "nonprivate", "epsilon": [3, 8], "why": "non-private training has no epsilon"}


def glue(**over: Any) -> TableSpec:
    """Methods and epsilons down, one task and model across; rows of a test's own have all their cells."""
    if "rows" in over:
        over.setdefault("cells", [{}])
    values: dict[str, Any] = {
        "paper": "automatic",
        "table": "glue_base",
        "title": "AUTO-S against tuned flat clipping, 100 % & more",
        "source": {"arxiv": "2206.07136", "number": "Table 2", "venue": "NeurIPS 2023"},
        "job": "fake",
        "metrics": {"accuracy": {"unit": "%", "better": "higher", "digits": 1}},
        "rows": {"method": ["nonprivate", "abadi", "auto_s"], "epsilon": ["inf", 3, 8]},
        "columns": {"task": {"sst2": {"dataset": "sst2"}}, "model": {"minilm": None, "roberta_base": None}},
        "settings": {"model": "minilm", "optimizer": {"name": "adamw", "learning_rate": 5e-4}},
        "origin": {"optimizer": "the paper's"},
        "seeds": [0, 1, 2],
        "cells": [
            {"method": "nonprivate", "epsilon": "inf"},
            {"method": ["abadi", "auto_s"], "epsilon": [3, 8]},
        ],
        "tiers": {
            **{t: {"columns": {"model": {"minilm": {}}}, "settings": {"tier_steps": i}} for i, t in enumerate(TIERS[:4])},
            "paper": {"columns": {"model": {"roberta_base": {"model": "roberta_base"}}}},
        },
        "claims": [
            {
                "id": "A1",
                "says": "AUTO-S matches or beats tuned flat clipping",
                "test": {
                    "metric": "accuracy",
                    "of": {"method": "auto_s"},
                    "against": {"method": "abadi"},
                    "difference_at_least": -0.5,
                },
            }
        ],
        "plots": [
            {
                "name": "methods",
                "title": "Accuracy by <epsilon>",
                "kind": "intervals",
                "metric": "accuracy",
                "x": "epsilon",
                "series": "method",
            }
        ],
        "notes": ["Only SST-2 has been read off the paper."],
    }
    return TableSpec.model_validate(values | over)


TIERS = ("smoke", "laptop", "overnight", "gpu", "paper")


def batch_size(**over: Any) -> TableSpec:
    """Engines measured in turn inside one run."""
    values: dict[str, Any] = {
        "paper": "flashdp",
        "table": "batch_size",
        "title": "Memory and throughput by batch size",
        "source": {"arxiv": "2507.01154", "number": "Table 1"},
        "job": "fake",
        "metrics": {
            "throughput": {"unit": "tokens/s", "better": "higher", "digits": 0},
            "throughput_ratio": {"unit": "", "better": "higher", "says": "to non-private"},
            "peak_memory": {"unit": "MiB", "better": "lower", "digits": 0, "says": "live tensors"},
            "process_peak": {"unit": "MiB", "better": "lower", "digits": 0, "main": False},
        },
        "rows": {"size": ["mini", "small"], "tokens": [128, 512], "batch_size": [2, 4, 8]},
        "columns": {"engine": ["nonprivate", "opacus", "ghost", "fused"]},
        "measured_together": {"engine": "engines"},
        "tiers": {t: {"settings": {"steps": i}} for i, t in enumerate(TIERS)},
        "claims": [
            {
                "id": "F1",
                "says": "fused reaches 0.9 of non-private throughput",
                "test": {
                    "metric": "throughput",
                    "of": {"engine": "fused"},
                    "against": {"engine": "nonprivate"},
                    "ratio_at_least": 0.9,
                },
            },
            {
                "id": "F6",
                "says": "fused is faster than the other private engines",
                "test": {
                    "metric": "throughput",
                    "of": {"engine": "fused"},
                    "against": {"engine": ["opacus", "ghost"]},
                    "ratio_at_least": 1.0,
                },
            },
        ],
        "plots": [
            {
                "name": "throughput",
                "title": "Throughput",
                "kind": "lines",
                "metric": "throughput",
                "x": "batch_size",
                "series": "engine",
                "panels": ["size", "tokens"],
            }
        ],
    }
    return TableSpec.model_validate(values | over)


ENVIRONMENT = Environment(
    python="3.12.1",
    platform="Linux",
    packages={"torch": "2.13.0", "opacus": "1.6.0"},
    device="cpu",
    device_name="",
    cpu="a processor",
    cores=2,
    memory_gib=8,
    threads=2,
    commit="c" * 40,
    dirty=False,
)


def privacy(validity: str = "valid") -> Privacy:
    return Privacy(
        epsilon=2.97,
        epsilon_rdp=3.21,
        target_epsilon=3.0,
        delta=1e-5,
        noise_multiplier=0.83,
        relation="add_or_remove",
        validity=validity,  # type: ignore[arg-type]
        reasons=[] if validity == "valid" else ["fixed batches accounted as Poisson"],
        accountants={"pld": "dp-accounting 0.6.0"},
    )


def record_of(run: Any, asked: list[Request], metrics: list[Metric], **over: Any) -> Record:
    return Record(
        run=run.id,
        config=run.config,
        requests=over.pop("requests", asked),
        sources=run.sources,
        metrics=metrics,
        environment=ENVIRONMENT,
        seconds=12.5,
        created=over.pop("created", "2025-03-04T05:06:07+00:00"),
        **over,
    )


def made_up(
    spec: TableSpec,
    tier: str,
    value: Any,
    sources: dict[str, Source] = REAL,
    machine: str | None = None,
    seeds: list[int] | None = None,
    **over: Any,
) -> list[Stored]:
    """Records of every run of a table. value: (labels, seed, metric name) -> Metric, float or None to leave it out."""
    plan = expand(spec, tier, resolver(sources), seeds)
    asked = requests_of([plan])
    by_run: dict[str, list[Metric]] = {}
    for cell in plan.cells:
        for name, metric in spec.metrics.items():
            metric_or_value = value(cell.labels, cell.seed, name)
            if isinstance(metric_or_value, (int, float)):
                metric_or_value = Metric(name=name, value=float(metric_or_value), unit=metric.unit)
            if metric_or_value is not None:
                by_run.setdefault(cell.run, []).append(metric_or_value.model_copy(update={"labels": cell.select}))
    return [
        Stored(record_of(plan.runs[run], asked[run], metrics, **over), Path("record.json"), machine)
        for run, metrics in by_run.items()
    ]

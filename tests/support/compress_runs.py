"""Small runs of the compress job on generated text: what its tests share."""

from __future__ import annotations

from pathlib import Path

from dpbench.data import registry as datasets
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.files import sha256_file
from dpbench.jobs import compression as compress
from dpbench.records.schema import Environment, Record
from dpbench.records.store import write_record
from dpbench.spec.expand import config_of, run_id
from dpbench.spec.sources import Source
from dpbench.validation import parse

TINY = Source(kind="scratch", synthetic=True)
SOURCES = {f"dataset:{name}": datasets.resolve(name, "embedded") for name in ("sst2", "wikitext2")} | {"model:tiny_bert": TINY}
BASE = {
    "dataset": "sst2",
    "model": "tiny_bert",
    "method": "bookkeeping",
    "clipping": {"function": "auto_s"},
    "epsilon": 8.0,
    "steps": 4,
    "expected_batch_size": 60,
    "max_length": 24,
    "train_limit": 400,
    "evaluate_limit": 40,
    "optimizer": {"name": "adamw", "learning_rate": 0.01, "schedule": "linear"},
    "curve_points": 2,
}
STUDENT = {
    "student": {"layers": 1, "start": "teacher"},
    "teacher": {},
    "distil": {"weight": 0.5, "temperature": 2.0},
    "split": {"teacher": 0.5, "student": 0.5},
}
DROP = {"drop": {"layers": 1, "block_steps": 1}}
PRUNE = {"prune": {"sparsity": 0.5, "steps": 2, "every": 1}}
PLAIN = {"method": "nonprivate", "clipping": None, "epsilon": None}

WHERE = Environment(
    python="3",
    platform="x",
    packages={},
    device="cpu",
    device_name="",
    cpu="",
    cores=1,
    memory_gib=1,
    threads=1,
    commit=None,
    dirty=None,
)


def settings(**over):
    return parse(compress.Settings, BASE | over, "test")


def resolve(kind, name):
    return SOURCES.get(f"{kind}:{name}", TINY)


def run(folder: Path, settings: compress.Settings, seed: int = 0, parents: dict[str, Path] | None = None):
    """The job in a folder of its own, after its teacher where it has one; leaves a record as the runner does."""
    folder.mkdir(parents=True, exist_ok=True)
    parents = dict(parents or {})
    if settings.teacher is not None and "teacher" not in parents:
        parents["teacher"] = folder / "teacher"
        run(parents["teacher"], parse(compress.Settings, settings.of_teacher(), "teacher"), seed)
    context = Context(folder, seed, SOURCES, StepLog(folder / "steps.jsonl"), parents=parents)
    outcome = compress.run(settings, context)
    config = config_of("compression", settings.model_dump(mode="json"), seed, resolve)
    record = Record(
        run=run_id(config),
        config=config,
        sources={name: SOURCES[name] for name in config["sources"]},
        metrics=outcome.metrics,
        mechanism=outcome.mechanism,
        privacy=outcome.privacy,
        environment=WHERE,
        facts=outcome.facts,
        artefacts={name: sha256_file(folder / name) for name in outcome.artefacts},
        seconds=1,
        created="2026-01-01T00:00:00+00:00",
    )
    write_record(record, folder)
    return outcome


def value(outcome, name):
    return next(m.value for m in outcome.metrics if m.name == name)

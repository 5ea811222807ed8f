"""Small runs of a text classifier by a zeroth-order method: what their tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpbench.data import registry as datasets
from dpbench.execution.contract import Context, Outcome
from dpbench.execution.tracking import StepLog
from dpbench.jobs import text_classification as classify
from dpbench.spec.sources import Source
from dpbench.validation import parse

SOURCES = {f"dataset:{name}": datasets.resolve(name, "embedded") for name in ("sst2", "wikitext2")} | {
    "model:tiny_bert": Source(kind="scratch", synthetic=True)
}
BASE = {
    "dataset": "sst2",
    "training": "full",
    "model": "tiny_bert",
    "method": "dpzero",
    "zeroth": {},
    "clipping": {"function": "abadi"},
    "epsilon": 8.0,
    "steps": 4,
    "expected_batch_size": 20,
    "max_length": 24,
    "train_limit": 200,
    "per_class": 40,
    "evaluate_limit": 30,
    "optimizer": {"name": "sgd", "learning_rate": 0.01},
}


def settings(**over: Any) -> classify.Settings:
    return parse(classify.Settings, BASE | over, "test")


def run(folder: Path, **over: Any) -> Outcome:
    return classify.run(settings(**over), Context(folder, 0, SOURCES, StepLog(folder / "steps.jsonl")))

"""Small runs of every job that trains under a budget, on generated data: what tests of all training loops share."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from parents import as_parent

from dpbench.compression.task import CompressedTask
from dpbench.data import registry
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import compression as compress
from dpbench.jobs import image_classification as image
from dpbench.jobs import image_features
from dpbench.jobs import language_modeling as language_model
from dpbench.jobs import prompt_completion as prompted
from dpbench.jobs import table_to_text as generate
from dpbench.jobs import table_to_text_pipeline as pipeline
from dpbench.jobs import text_classification as classify
from dpbench.jobs import text_features as features
from dpbench.models import sources
from dpbench.spec.expand import merge
from dpbench.tasks.image_classification.task import ImageTask
from dpbench.tasks.language_modeling.task import LanguageModelingTask
from dpbench.tasks.prompt_completion.task import PromptTask
from dpbench.tasks.table_to_text.task import TableToText
from dpbench.tasks.text_classification.task import FeatureTask, TextTask
from dpbench.validation import parse

DATASETS = ("sst2", "qnli", "mnist", "e2e_nlg", "squad", "wikitext2")
MODELS = ("tiny_bert", "cnn4", "linear", "scattering", "gpt2", "opt")
SOURCES = {f"dataset:{name}": registry.resolve(name, "embedded") for name in DATASETS}
SOURCES |= {f"model:{name}": sources.resolve(name, "scratch") for name in MODELS}

EPSILON = 2.0  # with which accounting takes little time
PRIVATE = {
    "method": "bookkeeping",
    "clipping": {"function": "abadi", "bound": 0.5},
    "epsilon": EPSILON,
    "steps": 4,
    "expected_batch_size": 12,
}
ZEROTH = {"method": "dpzero", "zeroth": {}, "optimizer": {"name": "sgd", "learning_rate": 1e-3}}
TEXT = PRIVATE | {
    "dataset": "sst2",
    "training": "full",
    "model": "tiny_bert",
    "max_length": 24,
    "token_budget": 96,
    "train_limit": 80,
    "evaluate_limit": 20,
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
}
COMPRESS = {k: v for k, v in TEXT.items() if k != "training"} | {"curve_points": 2}
PICTURES = PRIVATE | {
    "dataset": "mnist",
    "model": "cnn4",
    "train_limit": 80,
    "train_evaluated": 10,
    "physical": 5,
    "optimizer": {"name": "sgd", "learning_rate": 0.05},
}
GENERATE = PRIVATE | {
    "dataset": "e2e_nlg",
    "size": "tiny",
    "coding": "words",
    "vocabulary": 100,
    "max_length": 64,
    "token_budget": 200,
    "train_limit": 80,
    "evaluate_limit": 2,
    "samples": 1,
    "optimizer": {"learning_rate": 1e-3},
}
PROMPTED = PRIVATE | {
    "dataset": "sst2",
    "loss": "tokens",
    "size": "tiny",
    "vocabulary": 300,
    "max_length": 64,
    "token_budget": 300,
    "train_limit": 80,
    "evaluate_limit": 8,
    "optimizer": {"name": "sgd", "learning_rate": 1e-3},
}
LANGUAGE = PRIVATE | {
    "size": "tiny",
    "vocabulary": 300,
    "tokens": 16,
    "train_blocks": 80,
    "validation_blocks": 4,
    "evaluate_every": 4,
    "clipping": {"scope": "flat", "bound": 0.5},
    "token_budget": 64,
    "optimizer": {"learning_rate": 1e-3, "schedule": "cosine"},
}
PIPELINE = GENERATE | {"coding": "words", "devices": 2, "virtual": True, "clipping": {"function": "abadi", "scope": "per_device"}}


@dataclass(frozen=True)
class Case:
    """A job with small settings. task: what its run trains; parent: name of the run whose artefacts it reads."""

    job: ModuleType
    settings: dict[str, Any]
    task: type[Any]
    parent: str | None = None

    def parsed(self, **over: Any) -> Any:
        return parse(self.job.Settings, merge(self.settings, over), "test")


PARENTS = {
    "texts": (features, {"dataset": "sst2", "model": "tiny_bert", "train_limit": 80, "evaluate_limit": 20, "max_length": 24}),
    "pictures": (image_features, {"dataset": "mnist", "model": "scattering", "train_limit": 80}),
}
FROZEN = {"model": "linear", "features": "scattering"}
ANSWERS = PROMPTED | {"dataset": "squad", "loss": "candidates", "max_length": 96, "answer_length": 8}
CASES = {
    "features": Case(classify, TEXT | {"training": "features"}, FeatureTask, "texts"),
    "text": Case(classify, TEXT, TextTask),
    "pairs": Case(classify, TEXT | {"dataset": "qnli", "max_length": 48}, TextTask),
    "zeroth": Case(classify, TEXT | ZEROTH, TextTask),
    "compress": Case(compress, COMPRESS, CompressedTask),
    "drop": Case(compress, COMPRESS | {"drop": {"layers": 1, "block_steps": 1}}, CompressedTask),
    "prune": Case(compress, COMPRESS | {"prune": {"sparsity": 0.5, "steps": 2, "every": 1}}, CompressedTask),
    "image": Case(image, PICTURES | {"augmentation": {"multiplicity": 2, "shift": 1}}, ImageTask),
    "image_features": Case(image, PICTURES | FROZEN, ImageTask, "pictures"),
    "generate": Case(generate, GENERATE, TableToText),
    "prompted": Case(prompted, PROMPTED, PromptTask),
    "answers": Case(prompted, ANSWERS, PromptTask),
    "prompted_zeroth": Case(prompted, PROMPTED | ZEROTH | {"size": "opt_tiny", "loss": "candidates"}, PromptTask),
    "language_model": Case(language_model, LANGUAGE, LanguageModelingTask),
    "virtual_stages": Case(pipeline, PIPELINE, TableToText),
}


@cache
def parent_of(name: str) -> tempfile.TemporaryDirectory[str]:
    """The folder of features that several cases share, made once a process."""
    job, settings = PARENTS[name]
    temporary = tempfile.TemporaryDirectory(prefix="dpbench-test-")
    folder = Path(temporary.name)
    outcome = job.run(parse(job.Settings, settings, "parent"), Context(folder, 0, SOURCES, StepLog(folder / "steps.jsonl")))
    as_parent(folder, job.PLUGIN["name"], outcome.artefacts)
    return temporary


def context_of(case: Case, folder: Path, seed: int = 1) -> Context:
    """In a folder of its own, after its parent."""
    folder.mkdir(parents=True, exist_ok=True)
    parents = {} if case.parent is None else {"features": Path(parent_of(case.parent).name)}
    return Context(folder, seed, SOURCES, StepLog(folder / "steps.jsonl"), parents=parents)


def task_of(case: Case, folder: Path, **over: Any) -> Any:
    """The task as the job trains it."""
    task = case.task(case.parsed(**over), context_of(case, folder))
    if case.job is generate:
        task.quicken()
    return task


def run(case: Case, folder: Path, **over: Any) -> Any:
    """The job's outcome."""
    return case.job.run(case.parsed(**over), context_of(case, folder))


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its trained weights moved, so that no loss is where it is because a head starts at 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model

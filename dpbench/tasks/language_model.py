"""What tasks that fine-tune one language model share: settings, tokenizer, model, and its pre-training. No torch at import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from dpbench.data import coding
from dpbench.data.public import PUBLIC
from dpbench.execution.contract import Parents
from dpbench.files import canonical_json, sha256_text
from dpbench.models import registry as models
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.spec.sources import Source
from dpbench.training.config import TrainingSettings
from dpbench.validation import Strict

if TYPE_CHECKING:
    from dpbench.models.wrappers import LanguageModel

WEIGHTS = "model.safetensors"
"""File that the run of the public model leaves."""


class StartSettings(Strict):
    """The public model that training starts from: pre-trained on WikiText-2 without privacy, once for all runs that ask alike."""

    tokens: int = Field(ge=2, description="T of its blocks, and its positions.")
    train_blocks: int = Field(ge=1)
    steps: int = Field(ge=1)
    expected_batch_size: float = Field(gt=0, description="Blocks a step.")
    learning_rate: float = Field(gt=0, description="The largest; a tenth of the steps lead up to it, then it falls as a cosine.")


class LanguageModelSettings(TrainingSettings):
    """The dataset, and the model that is fine-tuned on it."""

    dataset: str
    size: str | None = Field(None, description="A size of a family of language models, see dpbench.models.language.")
    weights: str | None = Field(None, description="A model with published weights, in place of a size.")

    if TYPE_CHECKING:  # each task declares these, with a description that fits it
        vocabulary: int
        start: StartSettings | None
        max_length: int

    @property
    def model_name(self) -> str:
        """The model plug-in."""
        return self.weights or models.language_model_family(str(self.size))

    @property
    def positions(self) -> int:
        """Positions that training and decoding reach."""
        return self.max_length

    @model_validator(mode="after")
    def _one_model(self) -> LanguageModelSettings:
        if (self.size is None) == (self.weights is None):
            raise ValueError("exactly one of size and weights")
        if self.weights is not None and self.start is not None:
            raise ValueError("start pre-trains a model of a size; weights have been trained")
        if self.start is not None and self.start.tokens < self.positions:
            needed = f"the {self.positions} positions that are needed: max_length, and those of a prefix"
            raise ValueError(f"start.tokens {self.start.tokens} is below {needed}")
        return self


def uses(settings: LanguageModelSettings) -> Uses:
    """Return versions and sources that decide the numbers."""
    return Uses(tuple(settings.deciding_plugins), datasets=(settings.dataset, PUBLIC), models=(settings.model_name,))


def parents(settings: LanguageModelSettings, seed: int) -> Parents:
    """Return the run that pre-trains `start`, which does not depend on the seed; nothing where there is no start.

    Its token budget and precision are those of `start` where it names them, else those of the run.
    """
    start = settings.start
    if start is None:
        return {}
    same = {name: getattr(start, name) for name in ("tokens", "train_blocks", "steps", "expected_batch_size")}
    same |= {name: getattr(start if hasattr(start, name) else settings, name) for name in ("token_budget", "precision")}
    pretraining = {
        **same,
        "dataset": PUBLIC,
        "size": settings.size,
        "vocabulary": settings.vocabulary,
        "validation_blocks": 64,
        "evaluate_every": start.steps,
        "method": "nonprivate",
        "optimizer": {
            "learning_rate": start.learning_rate,
            "schedule": "cosine",
            "min_learning_rate": start.learning_rate / 10,
            "warmup_steps": start.steps // 10,
        },
        "device": settings.device,
        "save_weights": True,
    }
    gpu = int(settings.device == "cuda")
    minutes = max(0.3, start.steps / (600 if gpu else 120))  # a plan, as every table's
    resources = Resources(threads=2 if gpu else 1, minutes=minutes, mem_mb=8000, gpu=gpu)
    return {"start": ("language_modeling", pretraining, 0, resources)}


def coding_of(
    settings: LanguageModelSettings, sources: dict[str, Source], kind: Literal["words", "pieces"] = "pieces"
) -> coding.Coding:
    """Return the tokenizer: that of a model with published weights, or one of public text; `words` or `pieces`."""
    public = sources[f"dataset:{PUBLIC}"]
    if settings.weights is not None:
        return models.published_coding(settings.weights, sources[f"model:{settings.model_name}"], public)
    return coding.coding(kind, settings.dataset, settings.vocabulary, public)


def load_model(
    settings: LanguageModelSettings,
    vocabulary: int,
    source: Source,
    seed: int,
    meta: bool,
    start_weights: Path | None,
    **options: Any,
) -> LanguageModel:
    """Return the model before anything of it is frozen.

    Args:
        vocabulary: V of a model of a size.
        source: of published weights.
        meta: whether to build on the meta device.
        start_weights: of the public start.
        options: `dtype` and `tied`, as `dpbench.models` takes them.
    """
    from safetensors.torch import load_file

    if settings.weights is not None:
        return models.pretrained_language_model(settings.weights, source, seed, meta, **options)
    positions = settings.start.tokens if settings.start else settings.positions
    model = models.language_model(str(settings.size), seed, meta=meta, vocabulary=vocabulary, context=positions, **options)
    if start_weights is not None:
        model.load_state_dict(load_file(start_weights))
    return model


def output_facts(outputs: Sequence[str]) -> dict[str, Any]:
    """Return what a record says of the texts that a model has written."""
    return {
        "empty_outputs": sum(not text for text in outputs),
        "different_outputs": len(set(outputs)),
        "outputs_sha256": sha256_text(canonical_json(outputs)),
    }

"""The public model that a fine-tuned language model starts from, as a parent run. No torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dpbench.data.public import PUBLIC
from dpbench.spec.models import Resources
from dpbench.validation import Strict

WEIGHTS = "model.safetensors"
"""File that the run leaves."""

Parents = dict[str, tuple[str, dict[str, Any], int, Resources]]


class StartSettings(Strict):
    """The public model that training starts from: pre-trained on WikiText-2 without privacy, once for all runs that ask alike."""

    tokens: int = Field(ge=2, description="T of its blocks, and its positions.")
    train_blocks: int = Field(ge=1)
    steps: int = Field(ge=1)
    expected_batch_size: float = Field(gt=0, description="Blocks a step.")
    learning_rate: float = Field(gt=0, description="The largest; a tenth of the steps lead up to it, then it falls as a cosine.")


def parents(
    start: StartSettings | None,
    size: str | None,
    vocabulary: int,
    token_budget: int,
    precision: Literal["float32", "bfloat16"],
    device: Literal["cpu", "cuda"],
) -> Parents:
    """Return the run that pre-trains it, which does not depend on the seed; nothing where there is no start.

    Args:
        size: of the model family; vocabulary: of its BPE.
        token_budget, precision, device: of the pre-training.
    """
    if start is None:
        return {}
    settings = {
        "dataset": PUBLIC,
        "size": size,
        "vocabulary": vocabulary,
        "tokens": start.tokens,
        "train_blocks": start.train_blocks,
        "validation_blocks": 64,
        "evaluate_every": start.steps,
        "method": "nonprivate",
        "steps": start.steps,
        "expected_batch_size": start.expected_batch_size,
        "optimizer": {
            "learning_rate": start.learning_rate,
            "schedule": "cosine",
            "min_learning_rate": start.learning_rate / 10,
            "warmup_steps": start.steps // 10,
        },
        "token_budget": token_budget,
        "precision": precision,
        "device": device,
        "save_weights": True,
    }
    gpu = int(device == "cuda")
    minutes = max(0.3, start.steps / (600 if gpu else 120))  # a plan, as every table's
    return {
        "start": ("language_modeling", settings, 0, Resources(threads=2 if gpu else 1, minutes=minutes, mem_mb=8000, gpu=gpu))
    }

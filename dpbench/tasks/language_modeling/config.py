"""Settings of a language model that is pre-trained from scratch. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dpbench.models.language import language_model_family
from dpbench.privacy.mechanism import Mechanism
from dpbench.records.schema import Privacy
from dpbench.spec.expand import Uses
from dpbench.training.config import ClippingSettings, TrainingSettings
from dpbench.validation import omitted


class GroupClipping(ClippingSettings):
    """Clipping with exactly one of bound (of an example), group_bound (of each of its K groups) and thresholds (by group)."""

    function: str = "abadi"
    scope: str
    bound: float | None = omitted(gt=0)  # type: ignore[assignment]
    group_bound: float | None = omitted(gt=0)

    @model_validator(mode="after")
    def _one_bound(self) -> GroupClipping:
        if sum(value is not None for value in (self.bound, self.group_bound, self.thresholds)) != 1:
            raise ValueError("exactly one of bound, group_bound and thresholds")
        return self

    def total_bound(self, groups: int) -> float:
        if self.group_bound is not None:
            return self.group_bound * math.sqrt(groups)
        return 1.0 if self.bound is None else self.bound


class Settings(TrainingSettings):
    """One cell: a model, a text, an engine, an epsilon. An example, the unit of privacy, is one block of `tokens` tokens."""

    kinds: ClassVar[tuple[str, ...]] = ("engine", "published_engine")

    dataset: str = "wikitext2"
    size: str = Field(description="Size of the GPT-2 or Llama family.")
    vocabulary: int | None = Field(None, ge=258, description="Of tokenizer and model; none: that of the size.")
    tied: bool = Field(False, description="Whether the head is the token embedding.")
    tokens: int = Field(ge=2, description="T, tokens of a block.")
    train_blocks: int = Field(
        ge=1, description="n, blocks that can be drawn: the first of the train split, fewer if it is shorter."
    )
    validation_blocks: int = Field(
        ge=1, description="Blocks that the validation loss is taken over, from the start of its split."
    )
    evaluate_on: Literal["validation", "train_rest"] = Field(
        "validation", description="train_rest: the train split's blocks after those that can be drawn; for choosing settings."
    )
    evaluate_every: int = Field(ge=1, description="Steps between two values of the curve; the last is always taken.")
    clipping: GroupClipping | None = None
    noise: Literal["calibrated", "flashdp_published"] = Field(
        "calibrated", description="flashdp_published: std noise_multiplier / sqrt(B) on the mean, whatever the bounds (FLASH-1)."
    )
    token_budget: int = Field(8192, ge=16, description="Tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: float32 weights, products by autocast.")
    save_weights: bool = False

    @model_validator(mode="after")
    def _noise_fits(self) -> Settings:
        if not self.clips and self.noise != "calibrated":
            raise ValueError(f"method {self.method} adds no noise")
        if self.noise != "calibrated" and self.clipping is not None and self.clipping.adaptive is not None:
            raise ValueError(f"noise: {self.noise} pays for no adaptive thresholds: what is published has fixed ones")
        if self.expected_batch_size > self.train_blocks:
            raise ValueError(f"expected_batch_size {self.expected_batch_size:g} is more than train_blocks {self.train_blocks}")
        return self

    def mechanism(self, rows: int, kept: int, seed: int, groups: int = 1) -> Mechanism:
        """Return the one object that sampler, noise and accountant are built from.

        Under `noise: flashdp_published` the noise multiplier is the one that FlashDP's published update really has (FLASH-1),
        noise_multiplier x sqrt(B) / sensitivity; the stated epsilon is then no target, and the mechanism's epsilon is the real
        one. The published code adds noise of std noise_multiplier / sqrt(B) to every tensor of the mean over B examples, which is
        noise_multiplier x sqrt(B) on the sum, whatever the bounds. Over several backward passes the variances add to the same.
        With K groups of bound C the sensitivity of that sum is sqrt(K) x C.

        Args:
            rows, kept, groups: as in `TrainingSettings.mechanism`.
        """
        stated = super().mechanism(rows, kept, seed, groups)
        if self.noise == "calibrated" or stated.clipping is None:
            return stated
        real = stated.noise_multiplier * math.sqrt(self.expected_batch_size) / stated.clipping.bound
        return replace(stated, noise_multiplier=real, target_epsilon=None)

    def privacy(self, plan: Mechanism, unprotected: Sequence[str] = ()) -> Privacy | None:
        stated = super().privacy(plan, unprotected)
        return stated and stated.model_copy(update={"target_epsilon": self.epsilon})


def uses(settings: Settings) -> Uses:
    """Return versions and sources that decide the numbers."""
    plugins = tuple(settings.deciding_plugins)
    return Uses(plugins=plugins, datasets=(settings.dataset,), models=(language_model_family(settings.size),))

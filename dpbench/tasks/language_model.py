"""Settings of tasks that fine-tune one language model: a size of a family, or a model with published weights. No torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from dpbench.data.public import PUBLIC
from dpbench.models.language import language_model_family
from dpbench.spec.expand import Uses
from dpbench.training.config import TrainingSettings


class LanguageModelSettings(TrainingSettings):
    """The dataset, and the model that is fine-tuned on it."""

    dataset: str
    size: str | None = Field(None, description="A size of a family of language models, see dpbench.models.language.")
    weights: str | None = Field(None, description="A model with published weights, in place of a size.")

    @property
    def model_name(self) -> str:
        """The model plug-in."""
        return self.weights or language_model_family(str(self.size))

    @model_validator(mode="after")
    def _one_model(self) -> LanguageModelSettings:
        if (self.size is None) == (self.weights is None):
            raise ValueError("exactly one of size and weights")
        return self


def uses(settings: LanguageModelSettings) -> Uses:
    """Return versions and sources that decide the numbers."""
    return Uses(tuple(settings.deciding_plugins), datasets=(settings.dataset, PUBLIC), models=(settings.model_name,))

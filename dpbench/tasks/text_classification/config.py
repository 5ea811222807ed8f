"""Settings of a text classifier. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.data.public import PUBLIC
from dpbench.execution.contract import Parents
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.tasks import holdout
from dpbench.training.config import TrainingSettings
from dpbench.validation import Strict, omitted


class LoraSettings(Strict):
    """Low-rank adapters beside the attention's query and value products; all else of the encoder is frozen."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)


class Settings(TrainingSettings):
    """One cell: a task, a model, a method, an epsilon."""

    kinds: ClassVar[tuple[str, ...]] = ("engine", "zeroth", "published_zeroth")

    steps: int = Field(ge=0, description="0: the model is evaluated as it starts (zero-shot).")
    dataset: str
    training: Literal["full", "features"]
    model: str
    layers: int | None = Field(None, ge=1)
    head: Literal["zero", "label_words", "prompt_words", "prompt"] = Field(
        "zero",
        description="How it starts. label_words: at features of public phrases; prompt_words: at those of the dataset's prompt, "
        "with each label word filled in; prompt: a masked language model's, see dpbench.tasks.text_classification.prompting.",
    )
    hidden: list[int] = Field(default_factory=list, description="Widths of the MLP between features and classes.")
    freeze_embeddings: bool = True
    centre: bool = Field(True, description="Subtract the mean feature of public text.")
    feature_norm: float | None = Field(None, gt=0, description="Bring every feature vector to this length.")
    feature_scale: float = Field(1.0, gt=0, description="Multiply features by this.")
    class_keep: dict[str, float] = Field(
        default_factory=dict,
        description="Class -> share of its training rows kept, by a rule that looks at one row alone (costs no privacy).",
    )
    max_length: int = Field(128, ge=4)
    token_budget: int = Field(2048, ge=16, description="Padded tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    evaluate_on: Literal["validation", "train_rest"] = omitted(
        "validation", description="train_rest: training rows that are then never drawn; for choosing settings."
    )
    held_out: float = holdout.HELD_OUT
    lora: LoraSettings | None = omitted()
    per_class: int | None = omitted(ge=1, description="k: training rows of each class; fewer where it has fewer.")
    evaluate_limit: int | None = omitted(ge=1)
    chosen_by: holdout.ChosenBy = holdout.CHOSEN_BY

    @model_validator(mode="after")
    def _head_fits(self) -> Settings:
        if self.head == "prompt" and (self.training == "features" or self.hidden):
            raise ValueError("head: prompt fills a mask inside the encoder: training full, without hidden layers")
        if self.head == "prompt" and (self.centre or self.feature_norm is not None or self.feature_scale != 1):
            raise ValueError("head: prompt takes no pooled features: centre: false, without feature_norm and feature_scale")
        if self.lora is not None and self.training == "features":
            raise ValueError("lora: a head on frozen features has no attention")
        if self.training == "features" and self.head in ("label_words", "prompt_words") and self.hidden:
            raise ValueError(f"head: {self.head} is a linear head: it takes no hidden layers")
        if self.training == "features" and self.head == "prompt_words" and are_pairs(self.dataset):
            what = f"{self.dataset}: of a pair the head sees product and distance, which a sentence has not"
            raise ValueError(f"{what} (take head: zero)")
        if self.head == "label_words" and plugins.get("dataset", self.dataset).extra.get("label_phrases") is None:
            raise ValueError(f"dataset {self.dataset} declares no label_phrases (take head: zero, or add phrases to its plug-in)")
        return self

    @model_validator(mode="after")
    def _rows_are_chosen(self) -> Settings:
        if self.evaluate_on == "validation" and "held_out" in self.model_fields_set:
            raise ValueError("held_out without evaluate_on: train_rest holds nothing out")
        if any(not 0 < share <= 1 for share in self.class_keep.values()):
            raise ValueError("class_keep: every share must lie above 0 and not above 1")
        chooses = self.per_class is not None or any(share < 1 for share in self.class_keep.values())
        return holdout.state_choice(self, self.training == "features" and chooses)


def are_pairs(dataset: str) -> bool:
    """Return whether a dataset's examples are pairs of texts."""
    return "text_pair" in plugins.get("dataset", dataset).extra["columns"]


def feature_width(dataset: str, encoder: int) -> int:
    """Return the elements of one example's features, for an encoder of that width: of a pair, product and distance."""
    return 2 * encoder if are_pairs(dataset) else encoder


def uses(settings: Settings) -> Uses:
    """Return versions and sources that decide the numbers."""
    return Uses(plugins=tuple(settings.deciding_plugins), datasets=(settings.dataset, PUBLIC), models=(settings.model,))


def parents(settings: Settings, seed: int) -> Parents:
    """Return the run of features that training on features reads; it does not depend on the seed."""
    if settings.training == "full":
        return {}
    names = ("dataset", "model", "layers", "max_length", "precision", "train_limit", "device", "evaluate_limit")
    shared = {name: getattr(settings, name) for name in names}
    # batches are small: two runs beside each other, a core each, are a third sooner than one after the other with two
    return {"features": ("text_features", shared, 0, Resources(threads=1, minutes=4, mem_mb=4000))}

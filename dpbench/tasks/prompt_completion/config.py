"""Settings of a language model that goes on from prompts. No torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dpbench.data import asked
from dpbench.tasks import holdout
from dpbench.tasks.language_model import LanguageModelSettings, StartSettings
from dpbench.training.config import ZerothSettings


class PromptStart(StartSettings):
    """As in other tasks; it does not depend on how the run trains, so that runs of other tasks share it."""

    token_budget: int = Field(8192, ge=16, description="Tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = "float32"


class Settings(LanguageModelSettings):
    """One cell: a task, a model, a method, an epsilon. An example is one row: its prompt, and how it goes on."""

    kinds: ClassVar[tuple[str, ...]] = ("engine", "zeroth")

    steps: int = Field(ge=0, description="0: the model is evaluated as it starts (zero-shot).")
    dataset: str = Field(description="A dataset with prompts, see dpbench.data.asked.")
    vocabulary: int = Field(0, ge=0, description="Of a size: tokens of its BPE, which public text decides.")
    start: PromptStart | None = None
    tied: bool = Field(False, description="Whether the head is the token embedding.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Of the weights.")
    label_words: dict[str, str] | None = Field(
        None, description="Class -> how a prompt goes on, its space first; none: those of the dataset."
    )
    loss: Literal["candidates", "tokens"] = Field(
        "candidates",
        description="Of a classification. candidates: cross entropy over the classes' mean log-likelihoods; tokens: that of the "
        "right words' tokens, which is what answers always have.",
    )
    max_length: int = Field(ge=16, description="Tokens of a prompt and what follows; of a longer prompt the end is kept.")
    answer_length: int = Field(50, ge=2, description="Tokens of an answer, its end among them; longer ones are cut.")
    delta: float | Literal["1/(2n)", "n^-1.1"] = 1e-5
    zeroth: ZerothSettings | None = Field(None, description="Of a zeroth-order method, and only there.")
    train_limit: int | None = Field(None, ge=1, description="So many rows of the train split, which the seed chooses.")
    evaluate_on: Literal["validation", "train_rest"] = Field(
        "validation", description="train_rest: rows of the train split that the seed has not chosen; for choosing settings."
    )
    evaluate_limit: int | None = Field(None, ge=1)
    token_budget: int = Field(8192, ge=16, description="Padded tokens of a physical batch.")
    decoding_rows: int = Field(64, ge=1, description="Answers that are written at once.")
    chosen_by: holdout.ChosenBy = holdout.CHOSEN_BY

    @property
    def writes_answers(self) -> bool:
        """Whether the model writes answers, rather than one of the label words."""
        return asked.require(self.dataset)

    @model_validator(mode="after")
    def _model_fits(self) -> Settings:
        if self.weights is not None and self.vocabulary:
            raise ValueError("vocabulary belongs to a size: weights have been trained with their tokenizer")
        if self.size is not None and not self.vocabulary:
            raise ValueError("vocabulary: a model of a size needs one")
        if self.start is not None and self.tied:
            raise ValueError("tied: the model that start pre-trains has a separate head")
        for name, is_set in (("dtype", self.dtype != "float32"), ("tied", self.tied)):
            if is_set and self.zeroth is None and self.steps:
                raise ValueError(f"{name} {getattr(self, name)}: for zeroth-order methods and steps: 0 alone")
        return self

    @model_validator(mode="after")
    def _prompts_fit(self) -> Settings:
        if self.writes_answers:
            for name, is_set in (("label_words", self.label_words is not None), ("loss", self.loss != "candidates")):
                if is_set:
                    raise ValueError(f"{name}: {self.dataset} is answered in free text")
            if self.answer_length >= self.max_length:
                raise ValueError(
                    f"answer_length {self.answer_length} leaves no room for a prompt in max_length {self.max_length}"
                )
        else:
            asked.label_words(self.dataset, self.label_words)
        if self.evaluate_on == "train_rest" and self.train_limit is None:
            raise ValueError("evaluate_on: train_rest needs a train_limit, or nothing is left")
        by_content = self.train_limit is not None and (self.steps > 0 or self.evaluate_on == "train_rest")
        return holdout.state_choice(self, by_content)

"""Settings of a language model that puts tables into words, in one process or in pipeline stages. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpbench.tasks.language_model import LanguageModelSettings, StartSettings
from dpbench.validation import Strict

COUNTED = 1
"""Number of the step in which bytes are counted, which takes its time: the first sets the pipeline up."""


class TuningSettings(Strict):
    """What is trained.

    layers: last blocks (`last_layers`); rank, alpha: of the adapters (`lora`); length, width: positions of the prefix, and the
    hidden layer that makes it, none where it is trained itself (`prefix`).
    """

    mode: Literal["full", "last_layers", "lora", "prefix"] = "full"
    layers: int = Field(2, ge=1)
    rank: int = Field(4, ge=1)
    alpha: float = Field(32.0, gt=0)
    length: int = Field(10, ge=1)
    width: int | None = Field(None, ge=1)


class DecodingSettings(Strict):
    """How texts are generated. beams: 1 is greedy; rows: hypotheses at once."""

    beams: int = Field(1, ge=1)
    length_penalty: float = Field(1.0, ge=0)
    rows: int = Field(64, ge=1)


class Settings(LanguageModelSettings):
    """One cell: a dataset, a model, what is trained of it, a method, an epsilon. An example is one input with one text."""

    from_scratch: bool = Field(False, description="Random weights although there are published ones.")
    coding: Literal["words", "pieces", "own"] = Field(
        "pieces", description="How text becomes tokens, see dpbench.data.coding; own: as the model with published weights does."
    )
    vocabulary: int = Field(0, ge=0, description="pieces: tokens of the BPE; words: how many of the public text's words.")
    max_length: int = Field(100, ge=16, description="Tokens of input and text together; longer ones are cut.")
    tuning: TuningSettings = TuningSettings()
    start: StartSettings | None = None
    delta: float | Literal["1/(2n)", "n^-1.1"] = 8e-6
    train_limit: int | None = Field(None, ge=1, description="Only the first so many examples.")
    evaluate_on: Literal["test", "validation", "train_rest"] = Field(
        "test", description="train_rest: inputs of the train split that are then not trained on; for choosing settings."
    )
    held_out: float = Field(0.05, gt=0, lt=1, description="Share of the train split's inputs that is held out.")
    evaluate_limit: int | None = Field(None, ge=1, description="Only the first so many inputs.")
    decoding: DecodingSettings = DecodingSettings()
    samples: int = Field(5, ge=0, description="Best and worst outputs kept in the local record, so many of each.")
    token_budget: int = Field(8192, ge=16, description="Padded tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: float32 weights, products by autocast.")

    @property
    def positions(self) -> int:
        """Positions that training and decoding reach: the prefix comes first."""
        return self.max_length + (self.tuning.length if self.tuning.mode == "prefix" else 0)

    @property
    def is_pretrained(self) -> bool:
        """Whether training starts from a model that has learnt something."""
        return self.start is not None or (self.weights is not None and not self.from_scratch)

    @model_validator(mode="after")
    def _model_fits(self) -> Settings:
        if (self.weights is None) != (self.coding != "own"):
            raise ValueError("coding: own belongs to weights, and words and pieces to a size")
        if self.weights is None and self.from_scratch:
            raise ValueError("from_scratch says what to do with weights: a model of a size is from scratch already")
        if self.tuning.mode != "full" and not self.is_pretrained:
            says = f"tuning.mode {self.tuning.mode} trains a part of a model that has learnt something"
            raise ValueError(f"{says}: give start or weights")
        if self.start is not None and self.coding != "pieces":
            raise ValueError("start: its model was trained on pieces, so coding must be pieces")
        return self


class PipelineSettings(Settings):
    """One cell of training in pipeline stages: a dataset, a model, a number of devices, a clipping, an epsilon.

    Under scope per_device every stage clips the parameters that it trains by their norm, with threshold bound / sqrt(devices),
    and adds its noise; under scope flat the stages exchange norms (He et al., ICLR 2023).
    """

    devices: int = Field(ge=1, description="Stages of the pipeline, a process each.")
    virtual: bool = Field(False, description="One process instead, with the groups that the stages would have.")
    schedule: Literal["gpipe", "1f1b"] = "gpipe"
    micro_batches: int | None = Field(None, ge=1, description="Of a physical batch; None: as many as devices.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the weights that are not trained.")
    score: bool = Field(True, description="false: random weights, drawn stage by stage; only steps are measured.")

    @property
    def pieces(self) -> int:
        """Micro-batches of a physical batch."""
        return self.micro_batches or self.devices

    @property
    def is_pretrained(self) -> bool:
        return super().is_pretrained or not self.score

    @property
    def stages_are(self) -> str:
        """What the stages are, for a person."""
        return "virtual devices on one process" if self.virtual else "processes"

    @model_validator(mode="after")
    def _stages_fit(self) -> PipelineSettings:
        if self.tuning.mode not in ("full", "lora"):
            raise ValueError(f"tuning.mode {self.tuning.mode}: every stage must have something to train (full or lora)")
        if self.clipping is not None and self.clipping.devices is not None:
            raise ValueError("clipping.devices: the job's `devices` say how many there are")
        if self.steps < COUNTED + 2:
            raise ValueError(f"steps {self.steps}: the first {COUNTED + 1} are not timed, so give more")
        if self.schedule == "1f1b" and self.pieces < self.devices:
            raise ValueError(f"1f1b on {self.devices} stages wants as many micro-batches, or more")
        if not self.score and (self.size is None or self.start is not None or self.virtual):
            raise ValueError("score: false is for a size with random weights, on real devices")
        return self

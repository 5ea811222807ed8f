"""Settings of a language model that is trained in pipeline stages. No torch.

Under scope per_device every stage clips the parameters that it trains by their norm, with threshold bound / sqrt(devices), and
adds its noise; under scope flat the stages exchange norms (He et al., ICLR 2023).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpbench.tasks.table_to_text import config

COUNTED = 1
"""Number of the step in which bytes are counted, which takes its time: the first sets the pipeline up."""


class Settings(config.Settings):
    """One cell: a dataset, a model, a number of devices, a clipping, an epsilon."""

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
    def _stages_fit(self) -> Settings:
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

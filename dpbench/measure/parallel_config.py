"""Settings of timed training steps on several processes. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dpbench.measure.config import StepSettings

WAYS = {"ddp": "replicas", "fsdp": "shards", "gpipe": "stages", "1f1b": "stages"}
"""Mode -> the distributed form that an engine must support."""


class ParallelSettings(StepSettings):
    """Settings of one row of cells: a model, a mode, a number of processes."""

    mode: Literal["ddp", "fsdp", "gpipe", "1f1b"] = Field(description="ddp, fsdp: data parallel; gpipe, 1f1b: a pipeline.")
    processes: int = Field(ge=1, description="One a GPU; on a CPU they share its cores.")
    micro_batch: int | None = Field(
        None, ge=1, description="Examples a backward pass of one process; None: its whole share, or for a pipeline B / processes."
    )
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def pipeline(self) -> bool:
        return WAYS[self.mode] == "stages"

    def scope_of(self, engine: str) -> str | None:
        """Return the scope as on one process; in a pipeline per_layer."""
        scope = super().scope_of(engine)
        return "per_layer" if scope and self.pipeline else scope

    @property
    def share(self) -> int:
        """Return the examples of a step that one process computes."""
        return self.batch_size if self.pipeline else self.batch_size // self.processes

    @property
    def physical(self) -> int:
        """Return the examples of a backward pass of one process."""
        return self.micro_batch or max(self.batch_size // self.processes, 1)

    @model_validator(mode="after")
    def _divisible(self) -> ParallelSettings:
        if not self.pipeline and self.batch_size % self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by {self.processes} processes: their shares would differ"
            )
        if self.share % self.physical:
            raise ValueError(f"micro_batch {self.physical} does not divide the {self.share} examples of a process")
        if self.mode == "1f1b" and self.share // self.physical < self.processes:
            raise ValueError(f"1f1b on {self.processes} stages wants as many micro-batches, or more: lower micro_batch")
        return self

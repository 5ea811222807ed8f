"""What a record holds."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dpbench.spec.sources import Source
from dpbench.validation import Strict

SCHEMA_VERSION = 1


class Metric(Strict):
    """One measured value.

    labels: which of the run's inner cells it belongs to (`{"engine": "fused"}`), empty where the run is one cell;
    rounds: the repetitions it is the median of; low, high: their 20 and 80 % quantiles; value None: not measured, for the
    reason in `note`; kind `counted`: exact, so that one value decides; text: printed where there is nothing to measure, such as
    `none` for an epsilon that does not exist.
    """

    name: str
    value: float | None
    unit: str
    labels: dict[str, str] = Field(default_factory=dict)
    rounds: list[float] = Field(default_factory=list)
    low: float | None = None
    high: float | None = None
    kind: Literal["measured", "simulated", "counted"] = "measured"
    note: str = ""
    text: str = Field("", exclude_if=lambda v: not v)

    @field_validator("value", "low", "high")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("must be finite; a value that was not measured is null with a note")
        return value

    @model_validator(mode="after")
    def _explained(self) -> Metric:
        if self.value is None and not self.note:
            raise ValueError("a metric without a value needs a note that says why")
        if self.value is not None and self.text:
            raise ValueError("a metric with a value is printed as that value, not as a text")
        return self


class Privacy(Strict):
    """What the run's mechanism gives, and whether to believe it.

    epsilon: by PLD, the reported one; epsilon_rdp: beside it, None with `unsupported` in `rdp_note` where RDP refuses;
    validity: `valid`, or `nominal` with the reasons; noise_multiplier: noise std / add-or-remove sensitivity.
    """

    epsilon: float | None
    epsilon_rdp: float | None
    rdp_note: str = ""
    target_epsilon: float | None = None
    delta: float
    noise_multiplier: float
    relation: str
    validity: Literal["valid", "nominal"]
    reasons: list[str] = Field(default_factory=list)
    accountants: dict[str, str] = Field(default_factory=dict)


class Environment(Strict):
    """Where and with what a run was made. Holds no host name and no path."""

    python: str
    platform: str
    packages: dict[str, str]
    device: str
    device_name: str
    cpu: str
    cores: int
    memory_gib: float
    threads: int
    commit: str | None
    dirty: bool | None


class Request(Strict):
    """A cell that asked for this run."""

    paper: str
    table: str
    tier: str


class Record(Strict):
    """The result of one run. `run` is the hash of `config`."""

    schema_version: Literal[1] = 1
    run: str = Field(pattern=r"^[0-9a-f]{12}$")
    config: dict[str, Any]
    requests: list[Request] = Field(default_factory=list)
    sources: dict[str, Source] = Field(default_factory=dict)
    metrics: list[Metric]
    mechanism: dict[str, Any] | None = None
    privacy: Privacy | None = None
    environment: Environment
    facts: dict[str, Any] = Field(default_factory=dict, description="Job-specific: sizes, counts, hashes, curves.")
    artefacts: dict[str, str] = Field(default_factory=dict, description="File beside the record -> sha256.")
    warnings: list[str] = Field(default_factory=list)
    seconds: float = Field(ge=0)
    created: str = Field(description="UTC, ISO 8601.")

    @property
    def synthetic(self) -> bool:
        """Whether any of its data or weights were generated."""
        return any(source.synthetic for source in self.sources.values())

"""What a record holds, and what its values may be: whoever reads one relies on no more than what is checked here."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from dpbench.files import canonical_json, sha256_text
from dpbench.spec.models import TierName
from dpbench.spec.run_config import FileName, Name, RunConfig, RunId, Sha256
from dpbench.spec.sources import Source
from dpbench.validation import Strict

SCHEMA_VERSION = 2

Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(allow_inf_nan=False, ge=0)]
Line = Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A text that stands in one cell of a table."""
MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .-]*$", max_length=100)]
"""Of a metric; those of kernels have words: `error of norms`."""
Text = Annotated[str, StringConstraints(max_length=20_000)]
"""A text of its own: a note, a warning, what a model wrote."""


def digest_of(values: dict[str, Any]) -> str:
    """Hex sha256 of a record's canonical JSON without its `digest`.

    It finds damage, and edits by hand that nobody thought about. It is no signature: whoever changes a record on purpose can
    compute it anew. Who made a record is vouched for by the commit that filed it, not by the record.
    """
    return sha256_text(canonical_json({key: value for key, value in values.items() if key != "digest"}))


class Metric(Strict):
    """One measured value.

    labels: which of the run's inner cells it belongs to (`{"engine": "fused"}`), empty where the run is one cell;
    rounds: the repetitions it is the median of; low, high: their 20 and 80 % quantiles; value None: not measured, for the
    reason in `note`; kind `counted`: exact, so that one value decides; text: printed where there is nothing to measure, such as
    `none` for an epsilon that does not exist.
    """

    name: MetricName
    value: Finite | None
    unit: Line
    labels: dict[Name, Line] = Field(default_factory=dict)
    rounds: list[Finite] = Field(default_factory=list)
    low: Finite | None = None
    high: Finite | None = None
    kind: Literal["measured", "simulated", "counted"] = "measured"
    note: Text = ""
    text: Line = Field("", exclude_if=lambda v: not v)

    @model_validator(mode="after")
    def _explained(self) -> Metric:
        if self.value is None and not self.note:
            raise ValueError("a metric without a value needs a note that says why")
        if self.value is not None and self.text:
            raise ValueError("a metric with a value is printed as that value, not as a text")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("its 20 % quantile lies above its 80 % quantile")
        return self


class Privacy(Strict):
    """What the run's mechanism gives, and whether to believe it.

    epsilon: by PLD, the reported one; epsilon_rdp: beside it, None with `unsupported` in `rdp_note` where RDP refuses;
    validity: `valid`, or `nominal` with the reasons; noise_multiplier: noise std / add-or-remove sensitivity.
    """

    epsilon: Amount | None
    epsilon_rdp: Amount | None
    rdp_note: Text = ""
    target_epsilon: Annotated[float, Field(allow_inf_nan=False, gt=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)]
    noise_multiplier: Amount
    relation: Literal["add_or_remove", "replace_one"]
    validity: Literal["valid", "nominal"]
    reasons: list[Text] = Field(default_factory=list)
    accountants: dict[Name, Line] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Privacy:
        if self.validity == "valid" and self.reasons:
            raise ValueError(f"validity is valid, and there are reasons for which epsilon is nominal: {self.reasons[0][:80]}")
        if self.validity == "nominal" and not self.reasons:
            raise ValueError("validity is nominal, and no reason is given")
        if self.validity == "valid" and self.epsilon is not None and self.noise_multiplier == 0:
            raise ValueError("an epsilon of no noise")
        return self


class Environment(Strict):
    """Where and with what a run was made. Holds no host name and no path."""

    python: Line
    platform: Line
    packages: dict[Name, Line]
    device: Line
    device_name: Line
    cpu: Line
    cores: int = Field(ge=0, lt=2**31)
    memory_gib: Amount
    threads: int = Field(ge=0, lt=2**31)
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,64}$")] | None
    dirty: bool | None


class Request(Strict):
    """A cell that asked for this run; or, without labels, a table whose runs build on this one.

    labels: axis -> value of the cell; select: the labels that pick the cell's metrics among the run's; key: `Run.key` as it was
    then: a cell that asks for another one now has this record no longer.
    """

    paper: Name
    table: Name
    tier: TierName
    key: RunId
    labels: dict[Name, Line] = Field(default_factory=dict)
    select: dict[Name, Line] = Field(default_factory=dict)


class _Sampling(BaseModel):
    """What is read of a mechanism's sampling."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["poisson", "fixed"]


class _Mechanism(BaseModel):
    """What is read of a mechanism; the rest of `Mechanism.describe()` is shown as it is."""

    model_config = ConfigDict(extra="allow")
    sampling: _Sampling | None = None
    noise_multiplier: Amount | None = None
    delta: float | None = None
    relation: str | None = None
    clipping: dict[str, Any] | None = None
    seed: int | None = None
    steps: int | None = Field(None, ge=1)


class _Sample(Strict):
    """A text that a model wrote. input, references: of the dataset, in a record that has not left its machine."""

    place: Name
    index: int = Field(ge=0)
    output: Text
    bleu: Finite
    input: Text | None = None
    references: list[Text] | None = None


Point = Annotated[list[Finite], Field(min_length=2, max_length=2)]
"""[step, value]."""


class _Facts(BaseModel):
    """What is read of a job's facts; the rest is shown as it is."""

    model_config = ConfigDict(extra="allow")
    curve: list[Point] | None = None
    teacher_curve: list[Point] | None = None
    teacher_run: RunId | None = None
    samples: list[_Sample] | None = None
    train_rows: int | None = Field(None, ge=0)
    evaluated_rows: int | None = Field(None, ge=0)


class Record(Strict):
    """The result of one run. `run` is the hash of `config`."""

    schema_version: Literal[2] = 2
    run: RunId
    config: dict[str, Any]
    requests: list[Request] = Field(default_factory=list)
    sources: dict[str, Source] = Field(default_factory=dict)
    inherited_sources: dict[str, Source] = Field(
        default_factory=dict, description="Of the runs that it builds on, where these are not its own."
    )
    metrics: list[Metric]
    mechanism: dict[str, Any] | None = None
    privacy: Privacy | None = None
    environment: Environment
    facts: dict[str, Any] = Field(default_factory=dict, description="Job-specific: sizes, counts, hashes, curves.")
    artefacts: dict[FileName, Sha256] = Field(default_factory=dict, description="File beside the record -> sha256.")
    warnings: list[Text] = Field(default_factory=list)
    seconds: Amount
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", description="UTC, ISO 8601.")
    digest: str = Field("", description="Sha256 of all the rest, as canonical JSON. Finds damage and edits; it is no signature.")

    @property
    def all_sources(self) -> dict[str, Source]:
        """Data and models that it was made from, those of the runs that it builds on among them."""
        return self.inherited_sources | self.sources

    @property
    def synthetic(self) -> bool:
        """Whether any of its data or weights were generated."""
        return any(source.synthetic for source in self.all_sources.values())

    @field_validator("config")
    @classmethod
    def _config(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _held(RunConfig, value)

    @field_validator("mechanism")
    @classmethod
    def _mechanism(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else _held(_Mechanism, value)

    @field_validator("facts")
    @classmethod
    def _facts(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _held(_Facts, value)

    @field_validator("created")
    @classmethod
    def _a_time(cls, value: str) -> str:
        datetime.datetime.fromisoformat(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        identities = Counter((m.name, canonical_json(m.labels)) for m in self.metrics)
        for (name, labels), times in identities.items():
            if times > 1:
                raise ValueError(f"metrics: {name} with the labels {labels} stands {times} times")
        stated = self.config["sources"]
        for key in {**stated, **self.sources}:
            if key not in stated or key not in self.sources or self.sources[key].identity != stated[key]:
                raise ValueError(f"sources: {key} is not what config.sources says")
        self._check_privacy()
        return self

    def _check_privacy(self) -> None:
        """What a mechanism is and what is said of it must be of one piece."""
        mechanism = self.mechanism or {}
        if self.privacy is None:
            if mechanism.get("clipping") is not None and mechanism.get("noise_multiplier"):
                raise ValueError("privacy: nothing is said of a mechanism that clips and adds noise")
            return
        for key in ("noise_multiplier", "delta", "relation"):
            stated = getattr(self.privacy, key)
            if key in mechanism and mechanism[key] != stated:
                raise ValueError(f"privacy.{key}: {stated}, and its mechanism has {mechanism[key]}")

    @model_validator(mode="after")
    def _with_digest(self) -> Record:
        """A record that is made here has its digest from the start; of one that was read, the reader checks it."""
        if not self.digest:
            for key in ("config", "mechanism", "facts"):
                _check_finite(key, getattr(self, key))
            object.__setattr__(self, "digest", digest_of(self.model_dump(mode="json")))
        return self


def _check_finite(key: str, value: Any) -> None:
    """Pydantic writes NaN as null, which would say that there is no such number.

    Raises:
        ValueError: names the key.
    """
    try:
        json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        raise ValueError(f"{key}: holds a number that is not finite") from None


def _held(model: type[BaseModel], value: dict[str, Any]) -> dict[str, Any]:
    """`value` as it is, after it has been held to `model`.

    Raises:
        ValueError: names the first key that does not hold.
    """
    try:
        model.model_validate(value, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    return value

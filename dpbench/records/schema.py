"""The fields of a record and their valid values: readers of records rely only on what is checked here."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dpbench.files import canonical_json, sha256_text
from dpbench.spec.models import TierName
from dpbench.spec.run_config import FileName, Name, RunConfig, RunId, Sha256
from dpbench.spec.sources import Source
from dpbench.validation import Strict

SCHEMA_VERSION = 2

Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(allow_inf_nan=False, ge=0)]
Line = Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A text for one cell of a table."""
MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .-]*$", max_length=100)]
"""The name of a metric; the metrics of kernels are named by words: `error of norms`."""
Text = Annotated[str, StringConstraints(max_length=20_000)]
"""A longer text: a note, a warning, the output of a model."""


def digest_of(values: dict[str, Any]) -> str:
    """Return the hex sha256 of a record's canonical JSON without its `digest`.

    It detects damage and careless edits by hand. It is not a signature: whoever changes a record on purpose can compute it again.
    The commit that filed a record shows who recorded it, not the record itself.
    """
    return sha256_text(canonical_json({key: value for key, value in values.items() if key != "digest"}))


def with_digest(values: dict[str, Any]) -> dict[str, Any]:
    """Return a record's values with their digest computed again."""
    return values | {"digest": digest_of(values)}


class Metric(Strict):
    """One measured value.

    labels: the cell that it belongs to among the cells of the run (`{"engine": "fused"}`), empty where the run is one cell;
    rounds: the repetitions whose median is the value; low, high: their 20 and 80 % quantiles; value None: not measured, for the
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
            raise ValueError("its 20 % quantile is above its 80 % quantile")
        return self


class Privacy(Strict):
    """The privacy guarantee of the run's mechanism, and whether it can be trusted.

    epsilon: the reported one, by PLD; epsilon_rdp: by RDP, or None with `unsupported` in `rdp_note` where RDP does not apply;
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
    """Hardware and software of a run. It contains no host name and no path."""

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

    labels: axis -> value of the cell; select: the labels that pick the cell's metrics among the run's; key: `Run.key` at the time
    of the run: this record no longer fills a cell that asks for another key now.
    """

    paper: Name
    table: Name
    tier: TierName
    key: RunId
    labels: dict[Name, Line] = Field(default_factory=dict)
    select: dict[Name, Line] = Field(default_factory=dict)


class _Sampling(BaseModel):
    """The fields of a mechanism's sampling that are read."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["poisson", "fixed"]


class _Mechanism(BaseModel):
    """The fields of a mechanism that are read; the others of `Mechanism.describe()` are shown unchanged."""

    model_config = ConfigDict(extra="allow")
    sampling: _Sampling | None = None
    noise_multiplier: Amount | None = None
    delta: float | None = None
    relation: str | None = None
    clipping: dict[str, Any] | None = None
    seed: int | None = None
    steps: int | None = Field(None, ge=1)


class _Sample(Strict):
    """A text that a model wrote. input, references: from the dataset, only in a record that has not left its machine."""

    place: Name
    index: int = Field(ge=0)
    output: Text
    bleu: Finite
    input: Text | None = None
    references: list[Text] | None = None


Point = Annotated[list[Finite], Field(min_length=2, max_length=2)]
"""[step, value]."""


class _Facts(BaseModel):
    """The fields of a job's facts that are read; the others are shown unchanged."""

    model_config = ConfigDict(extra="allow")
    curve: list[Point] | None = None
    teacher_curve: list[Point] | None = None
    teacher_run: RunId | None = None
    samples: list[_Sample] | None = None
    train_rows: int | None = Field(None, ge=0)
    evaluated_rows: int | None = Field(None, ge=0)


def _checked_by(model: type[BaseModel]) -> AfterValidator:
    """Return a validator that raises a ValueError with the first key that is invalid in `model`, and changes nothing."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        try:
            model.model_validate(value, strict=True)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        return value

    return AfterValidator(check)


def _check_time(value: str) -> str:
    datetime.datetime.fromisoformat(value)
    return value


class Record(Strict):
    """The result of one run. `run` is the hash of `config`."""

    schema_version: Literal[2] = 2
    run: RunId
    config: Annotated[dict[str, Any], _checked_by(RunConfig)]
    requests: list[Request] = Field(default_factory=list)
    sources: dict[str, Source] = Field(default_factory=dict)
    inherited_sources: dict[str, Source] = Field(
        default_factory=dict, description="Those of the runs that it builds on, except its own."
    )
    metrics: list[Metric]
    mechanism: Annotated[dict[str, Any], _checked_by(_Mechanism)] | None = None
    privacy: Privacy | None = None
    environment: Environment
    facts: Annotated[dict[str, Any], _checked_by(_Facts)] = Field(
        default_factory=dict, description="Job-specific: sizes, counts, hashes, curves."
    )
    artefacts: dict[FileName, Sha256] = Field(default_factory=dict, description="File beside the record -> sha256.")
    warnings: list[Text] = Field(default_factory=list)
    seconds: Amount
    created: Annotated[str, AfterValidator(_check_time)] = Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", description="UTC, ISO 8601."
    )
    digest: str = Field(
        "", description="Sha256 of all other fields as canonical JSON. It detects damage and edits, but is not a signature."
    )

    @property
    def all_sources(self) -> dict[str, Source]:
        """The data and models of this run and of the runs that it builds on."""
        return self.inherited_sources | self.sources

    @property
    def synthetic(self) -> bool:
        """Whether any of its data or weights are synthetic."""
        return any(source.synthetic for source in self.all_sources.values())

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        identities = Counter((m.name, canonical_json(m.labels)) for m in self.metrics)
        for (name, labels), times in identities.items():
            if times > 1:
                raise ValueError(f"metrics: {name} with the labels {labels} occurs {times} times")
        config_sources = self.config["sources"]
        for key in {**config_sources, **self.sources}:
            if key not in config_sources or key not in self.sources or self.sources[key].identity != config_sources[key]:
                raise ValueError(f"sources: {key} is not what config.sources says")
        self._check_privacy()
        return self

    def _check_privacy(self) -> None:
        """Check that the privacy statement fits the mechanism."""
        mechanism = self.mechanism or {}
        if self.privacy is None:
            if mechanism.get("clipping") is not None and mechanism.get("noise_multiplier"):
                raise ValueError("privacy: missing for a mechanism that clips and adds noise")
            return
        for key in ("noise_multiplier", "delta", "relation"):
            stated = getattr(self.privacy, key)
            if key in mechanism and mechanism[key] != stated:
                raise ValueError(f"privacy.{key}: {stated}, and its mechanism has {mechanism[key]}")

    @model_validator(mode="after")
    def _with_digest(self) -> Record:
        """Add the digest to a new record; `record_from` checks the digest of a record that was read."""
        if not self.digest:
            for key in ("config", "mechanism", "facts"):
                _check_finite(key, getattr(self, key))
            object.__setattr__(self, "digest", digest_of(self.model_dump(mode="json")))
        return self


def _check_finite(key: str, value: Any) -> None:
    """Refuse numbers that are not finite: pydantic writes NaN as null, which would mean that there is no such number.

    Raises:
        ValueError: names the key.
    """
    try:
        json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        raise ValueError(f"{key}: holds a number that is not finite") from None

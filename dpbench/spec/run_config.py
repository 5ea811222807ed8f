"""The config that names a run, checked by type and range. Running it checks whether its plug-ins and settings exist."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from dpbench.spec.sources import Kind
from dpbench.validation import Strict

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
RunId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that every random number generator used here accepts."""
Versioned = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+:[A-Za-z0-9_.-]+$", max_length=200)]
Sourced = Annotated[str, StringConstraints(pattern=r"^(dataset|model):[A-Za-z0-9_.-]+$", max_length=200)]
FileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_. -]*(/[A-Za-z0-9_-][A-Za-z0-9_. -]*)*$", max_length=300)
]
"""A path inside a folder, written with slashes: no part of it begins with a dot."""
Tracking = Literal["off", "offline", "online"]
"""How a run is mirrored to Weights & Biases."""


class Identity(Strict):
    """What identifies a dataset or model: the content of its files, or where they come from and in which revision."""

    files: dict[FileName, Sha256] | None = Field(None, min_length=1)
    kind: Kind | None = None
    revision: Annotated[str, StringConstraints(max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Identity:
        names = self.model_fields_set
        if names not in ({"files"}, {"kind", "revision"}) or None in (getattr(self, name) for name in names):
            raise ValueError("give `files`, or `kind` and `revision`")
        return self


class RunConfig(Strict):
    """The keys of a run's config."""

    job: Name
    settings: dict[str, Any]
    seed: Seed
    versions: dict[Versioned, int | str]
    sources: dict[Sourced, Identity]
    parents: dict[Name, RunId]

"""The sources of data and models: they are resolved once, when the runs are named, and are part of every run's hash."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpbench.validation import Strict

Kind = Literal["local", "hub", "package", "embedded", "scratch"]


class Source(Strict):
    """The source of a dataset or model, without its path on this machine.

    kind: `local` folder, `hub` at a pinned revision, `package` (installed from an index), `embedded` (generated here),
        `scratch` (a configuration without weights); files: name -> sha256; synthetic: its numbers are marked everywhere.
    """

    kind: Kind
    files: dict[str, str] = Field(default_factory=dict)
    revision: str = ""
    synthetic: bool = False
    says: str = ""

    @property
    def identity(self) -> dict[str, object]:
        """The part that decides numbers and enters a run's hash: the hashes of the files where they are known in advance."""
        return {"files": self.files} if self.files else {"kind": self.kind, "revision": self.revision}

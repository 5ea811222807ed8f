"""Read `benchmarks/<paper>/deviations.yaml`: known differences between a paper, its published code and this suite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import read_yaml
from dpbench.spec.models import Label
from dpbench.validation import Strict, parse

Severity = Literal["critical", "correctness", "theoretical", "performance", "trap", "note", "negligible"]


class Shown(Strict):
    """Rows that show the effect of a deviation. table: PAPER/TABLE; where: axis -> the values of those rows."""

    table: str
    where: dict[str, list[Label]]

    @property
    def text(self) -> str:
        """The rows in words: `flashdp/utility: variant as_published_layers`."""
        return f"{self.table}: " + "; ".join(f"{axis} {', '.join(values)}" for axis, values in self.where.items())


class Deviation(Strict):
    """One difference.

    severity: `critical` voids or weakens the stated guarantee, `correctness` gives a wrong gradient or memory error, the other
        names have their usual meaning; where: the file or section it is in; test: the test that shows it, empty if there is none;
        shown_by: the rows that show its cost.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    severity: Annotated[Severity, BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v)]
    fact: str
    where: str = ""
    test: str = ""
    shown_by: Shown | None = None


def deviations(paper: str) -> list[Deviation]:
    """Return the deviations of a paper, none if it has no such file.

    Raises:
        DpbenchError: malformed YAML, unknown or missing keys, or an id that occurs twice.
    """
    path = paths.benchmarks() / paper / "deviations.yaml"
    if not path.exists():
        return []
    values = read_yaml(path) or []
    if not isinstance(values, list):
        raise DpbenchError(f"{path}: not a list", "write a list of {id, severity, fact, where, test}")
    entries = [parse(Deviation, value, f"{path}: entry {i + 1}") for i, value in enumerate(values)]
    ids = [d.id for d in entries]
    if duplicates := {i for i in ids if ids.count(i) > 1}:
        raise DpbenchError(f"{path}: the id {min(duplicates)!r} occurs twice", "give each deviation another id")
    return entries

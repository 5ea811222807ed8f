"""Decide which records still fill the cells of a table: those whose cell asks for the same run today as it did then."""

from __future__ import annotations

from functools import cache

from dpbench.errors import DpbenchError
from dpbench.records.schema import Record, Request
from dpbench.spec.expand import Plan, expand
from dpbench.spec.models import TableSpec
from dpbench.spec.sources import Source

_ANYWHERE = Source(kind="scratch", revision="anywhere")  # no part of a run's key


class Current:
    """The runs that a table asks for at each tier, wherever its data and models come from.

    plan: tier -> the table's plan, without cells where it cannot be expanded here.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self.plan = cache(self._plan)
        self._asked = cache(self._asked_at)

    def cells_of(self, record: Record) -> list[Request]:
        """Return the cells of this table that the record was made for and still fills."""
        return [request for request in self._requests(record) if request.labels and self._is_current(request)]

    def is_part(self, record: Record) -> bool:
        """Return whether this table needs the record's run now, for a cell or as a parent of a cell's run."""
        return any(self._is_current(request) for request in self._requests(record))

    def is_stale(self, record: Record) -> bool:
        """Return whether the record was made for this table, which does not need its run any more."""
        return bool(self._requests(record)) and not self.is_part(record)

    def _requests(self, record: Record) -> list[Request]:
        return [r for r in record.requests if (r.paper, r.table) == (self._spec.paper, self._spec.table)]

    def _is_current(self, request: Request) -> bool:
        return (frozenset(request.labels.items()), request.key) in self._asked(request.tier)

    def _asked_at(self, tier: str) -> set[tuple[frozenset[tuple[str, str]], str]]:
        """Return (labels, key of a run) for each cell of a tier, and its runs without labels."""
        plan = self.plan(tier)
        cells = {(frozenset(cell.labels.items()), plan.runs[cell.run].key) for cell in plan.cells}
        return cells | {(frozenset[tuple[str, str]](), run.key) for run in plan.runs.values()}

    def _plan(self, tier: str) -> Plan:
        try:
            return expand(self._spec, tier, lambda kind, name: _ANYWHERE)
        except DpbenchError:
            return Plan(self._spec, tier)

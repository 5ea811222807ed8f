"""Decide which records still fill the cells of a table: those whose cell asks for the same run today as it did then."""

from __future__ import annotations

from dpbench.errors import DpbenchError
from dpbench.records.schema import Record, Request
from dpbench.report.data import Origin
from dpbench.spec.expand import Plan, expand
from dpbench.spec.models import TableSpec
from dpbench.spec.sources import Source

Place = tuple[Origin, str, str]
"""(origin, tier, machine)."""

_ANYWHERE = Source(kind="scratch", revision="anywhere")  # no part of a run's key


class Current:
    """The runs that a table asks for at each tier, wherever its data and models come from."""

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self._plans: dict[str, Plan | None] = {}

    def cells_of(self, record: Record) -> list[Request]:
        """Return the cells of this table that the record was made for and still fills."""
        return [request for request in self._requests(record) if request.labels and self._is_current(request)]

    def is_part(self, record: Record) -> bool:
        """Return whether this table needs the record's run now, for a cell or as a parent of a cell's run."""
        return any(self._is_current(request) for request in self._requests(record))

    def is_stale(self, record: Record) -> bool:
        """Return whether the record was made for this table, which does not need its run any more."""
        return bool(self._requests(record)) and not self.is_part(record)

    def paper_cells(self) -> list[tuple[dict[str, str], str | None]]:
        """Return the cells of the published table itself, each with the reason if it does not exist."""
        plan = self._plan("paper")
        if plan is None:
            return []
        cells: dict[tuple[str, ...], tuple[dict[str, str], str | None]] = {
            tuple(cell.labels.values()): (dict(cell.labels), None) for cell in plan.cells
        }
        return [*cells.values(), *((dict(labels), why) for labels, why in plan.skipped)]

    def _requests(self, record: Record) -> list[Request]:
        return [r for r in record.requests if (r.paper, r.table) == (self._spec.paper, self._spec.table)]

    def _is_current(self, request: Request) -> bool:
        plan = self._plan(request.tier)
        if plan is None:
            return False
        if not request.labels:
            return any(run.key == request.key for run in plan.runs.values())
        return any(c.labels == request.labels and plan.runs[c.run].key == request.key for c in plan.cells)

    def _plan(self, tier: str) -> Plan | None:
        """Return the table's plan at a tier, None where it cannot be expanded here."""
        if tier not in self._plans:
            try:
                self._plans[tier] = expand(self._spec, tier, lambda kind, name: _ANYWHERE)
            except DpbenchError:
                self._plans[tier] = None
        return self._plans[tier]

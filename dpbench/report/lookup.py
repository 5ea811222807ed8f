"""Which cells a record fills: the table is expanded as it would have been with that record's own data and models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.files import canonical_json
from dpbench.records.schema import Record
from dpbench.records.store import Stored
from dpbench.report.data import Origin
from dpbench.spec.expand import Cell, Plan, Resolve, expand_with
from dpbench.spec.models import TIERS, TableSpec
from dpbench.spec.sources import Source
from dpbench.validation import parse

Place = tuple[Origin, str, str]
"""(origin, tier, machine)."""

_ANY = ""  # in place of settings: these seeds are looked for in every cell, as those of parents are
_ABSENT = Source(kind="scratch", revision="absent")
"""Stands for what no record of a group names: the runs it gives match nothing."""


class Lookup:
    """Run id -> tiers and cells, over every set of sources that some record was made from.

    Args:
        stored: records of any table; only this table's, or its job's, are looked at.
        seeds: looked for in every cell, besides its own and those of the records of its settings.
    """

    def __init__(self, spec: TableSpec, resolve: Resolve, stored: list[Stored], seeds: list[int] | None) -> None:
        self.spec = spec
        self._resolve = resolve
        self._settings = plugins.get("job", spec.job).load().Settings
        self._by_run = {(s.machine, s.record.run): s for s in stored}
        self._stored = [s for s in self._by_run.values() if self._asks(s.record) or s.record.config.get("job") == spec.job]
        self._seeds_of: dict[str, set[int]] = defaultdict(set)
        for config in (s.record.config for s in self._stored):
            whose = canonical_json(config["settings"]) if config["job"] == spec.job else _ANY
            self._seeds_of[whose].add(config["seed"])
        self._seeds_of[_ANY] |= set(seeds or [])
        self._sources: dict[tuple[str | None, str], dict[str, Source]] = {}
        self._cells: dict[str, list[tuple[str, Cell]]] = defaultdict(list)
        self._known: set[str] = set()
        for group in self._groups():
            for tier in TIERS:
                if (plan := self._expand(tier, group)) is not None:
                    self._note(plan)

    def _asks(self, record: Record) -> bool:
        return any((r.paper, r.table) == (self.spec.paper, self.spec.table) for r in record.requests)

    def sources(self, stored: Stored) -> dict[str, Source]:
        """A record's sources with those of the runs it builds on, its own before theirs."""
        key = (stored.machine, stored.record.run)
        if key not in self._sources:
            line, seen = [stored], {stored.record.run}  # parents behind their children; without recursion: a chain may be long
            for child in line:
                for parent in reversed(child.record.config["parents"].values()):
                    above = self._by_run.get((stored.machine, parent))
                    if above is not None and parent not in seen:
                        seen.add(parent)
                        line.append(above)
            found: dict[str, Source] = {}
            for item in reversed(line):
                found |= item.record.sources
            self._sources[key] = found
        return self._sources[key]

    def synthetic(self, stored: Stored) -> bool:
        """Whether anything that the record builds on was generated."""
        return any(source.synthetic for source in self.sources(stored).values())

    def fingerprint(self, stored: Stored) -> str:
        """One text per set of data and models: records that differ in it are never averaged."""
        return canonical_json({name: source.identity for name, source in self.sources(stored).items()})

    def _groups(self) -> list[dict[str, Source]]:
        """The fewest sets of sources of which each record finds all of its own in one."""
        groups: list[dict[str, Source]] = []
        for stored in self._stored:
            own = self.sources(stored)
            for group in groups:
                if all(group[name].identity == source.identity for name, source in own.items() if name in group):
                    group.update(own)
                    break
            else:
                groups.append(dict(own))
        return groups

    def _expand(self, tier: str, group: dict[str, Source]) -> Plan | None:
        def resolve(kind: str, name: str) -> Source:
            key = f"{kind}:{name}"
            if key not in group:
                try:
                    group[key] = self._resolve(kind, name)
                except DpbenchError:
                    group[key] = _ABSENT
            return group[key]

        def chosen(own: list[int], settings: dict[str, Any]) -> list[int]:
            """Of a cell's many possible runs those that a record may be of: thousands of records each have a seed."""
            parsed = parse(self._settings, settings, self.spec.table).model_dump(mode="json")
            return sorted({*own, *self._seeds_of[_ANY], *self._seeds_of.get(canonical_json(parsed), ())})

        try:
            plan = expand_with(self.spec, tier, resolve, chosen)
        except DpbenchError:  # a tier that cannot be expanded here has no records either
            return None
        return plan if plan.cells else None

    def _note(self, plan: Plan) -> None:
        self._known |= set(plan.runs)
        for cell in plan.cells:
            if (plan.tier, cell) not in self._cells[cell.run]:
                self._cells[cell.run].append((plan.tier, cell))

    def placed(self) -> Iterator[tuple[Stored, str, Cell]]:
        """Each record with each tier and cell it fills.

        Where two tiers name the same run, those count that the record was made for.
        """
        for stored in self._stored:
            matches = self._cells.get(stored.record.run, [])
            asked = {r.tier for r in stored.record.requests if (r.paper, r.table) == (self.spec.paper, self.spec.table)}
            wanted = [m for m in matches if m[0] in asked] or matches
            for tier, cell in wanted:
                yield stored, tier, cell

    def is_part(self, stored: Stored) -> bool:
        """Whether a current expansion names this run, as a cell's or as a parent."""
        return stored.record.run in self._known and self._asks(stored.record)

    def stale(self) -> list[Stored]:
        """Records that ask for this table but that no current expansion names."""
        return [s for s in self._stored if self._asks(s.record) and s.record.run not in self._known]

    def paper_cells(self) -> list[tuple[dict[str, str], str | None]]:
        """The cells of the published table itself, each with the reason if it does not exist."""
        plan = self._expand("paper", {})
        if plan is None:
            return []
        labels: list[tuple[dict[str, str], str | None]] = [(dict(c.labels), None) for c in plan.cells]
        return labels + [(dict(where), why) for where, why in plan.skipped]

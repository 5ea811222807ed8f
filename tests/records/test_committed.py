"""The committed records: every one holds, by schema, meaning, digest and name, and asks for tables that there are."""

from __future__ import annotations

from dpbench import paths
from dpbench.execution import environment
from dpbench.records.packed import file_of, recorded_records
from dpbench.records.store import LeftOut
from dpbench.spec.tables import papers, tables_of


def test_no_committed_record_is_left_out():
    left_out: list[LeftOut] = []
    stored = list(recorded_records(left_out))
    assert [str(item) for item in left_out] == []
    files = list(paths.recorded().glob("*/*.jsonl"))
    assert len(stored) == sum(len(path.read_text().splitlines()) for path in files) > 1000
    assert len(files) <= 30
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_each_lies_where_it_would_be_filed_for_known_tables():
    known = {(paper, table) for paper in papers() for table in tables_of(paper)}
    for stored in recorded_records():
        assert stored.machine == environment.machine(stored.record.environment)
        assert stored.path == file_of(stored.record, stored.machine)
        assert {(r.paper, r.table) for r in stored.record.requests} <= known

"""How much of a dataset a table's numbers were made with, and what is special about the copy: from the records."""

from __future__ import annotations

from typing import Any

from dpbench import plugins
from dpbench.report.data import RecordInfo, TableData
from dpbench.report.layout import without_smoke


def rows_used(table: TableData) -> list[str]:
    """`here (laptop), qnli: trained on 9,999 of 104,743 rows, evaluated on 5,463`: a line a place and dataset."""
    records = {(info.run, info.machine): info for info in table.records}
    lines: dict[str, None] = {}
    for entry in without_smoke(table, table.entries):
        if entry.value is None or entry.origin == "published":
            continue
        for run in entry.runs:
            info = records.get((run, entry.machine))
            if info is not None and (said := _said(info)):
                lines.setdefault(f"{entry.place_text}, {said}")
    return list(lines)


def _said(info: RecordInfo) -> str:
    """Empty for a record that does not say how many rows it saw."""
    facts: dict[str, Any] = info.record.get("facts", {})
    settings = info.record.get("config", {}).get("settings", {})
    task = settings.get("dataset")
    if not task or "train_rows" not in facts or "evaluated_rows" not in facts:
        return ""
    plugin = plugins.discover("dataset").get(task)
    source = info.record.get("sources", {}).get(f"dataset:{task}", {})
    extra = {} if plugin is None else plugin.extra
    official = {} if source.get("synthetic") else extra.get("rows", {})
    evaluated = next((rows for split, rows in official.items() if split != "train"), None)
    trained = _of(facts["train_rows"], official.get("train"))
    text = f"{task}: trained on {trained} rows, evaluated on "
    if settings.get("evaluate_on") == "train_rest":
        text += f"{facts['evaluated_rows']:,} others of the train split"
    else:
        text += _of(facts["evaluated_rows"], evaluated)
    note = extra.get("notes", {}).get(source.get("kind"))
    return f"{text} ({note})" if note else text


def _of(count: int, official: int | None) -> str:
    """`9,999 of 104,743`, or the count alone where it is all there is."""
    return f"{count:,}" if official is None or count == official else f"{count:,} of {official:,}"

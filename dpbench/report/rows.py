"""Tell from the records how much of each dataset a table's numbers are based on, and what is special about the copy."""

from __future__ import annotations

from typing import Any

from dpbench import plugins
from dpbench.report.data import RecordInfo, TableData
from dpbench.report.layout import with_values


def rows_used(table: TableData) -> list[str]:
    """Return a line per place and dataset: `here (laptop), qnli: trained on 9,999 of 104,743 rows, evaluated on 5,463`."""
    records = {(info.run, info.machine): info for info in table.records}
    lines: dict[str, None] = {}
    for entry in with_values(table):
        for run in entry.runs:
            info = records.get((run, entry.machine))
            if info is not None and (text := _rows_text(info)):
                lines.setdefault(f"{entry.place_text}, {text}")
    return list(lines)


def _rows_text(info: RecordInfo) -> str:
    """Return the rows that a record's run used, in words; empty for a record that does not have their number."""
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
    trained = _count_text(facts["train_rows"], official.get("train"))
    text = f"{task}: trained on {trained} rows, evaluated on "
    if settings.get("evaluate_on") == "train_rest":
        text += f"{facts['evaluated_rows']:,} others of the train split"
    else:
        text += _count_text(facts["evaluated_rows"], evaluated)
    note = extra.get("notes", {}).get(source.get("kind"))
    return f"{text} ({note})" if note else text


def _count_text(count: int, official: int | None) -> str:
    """Return `9,999 of 104,743`, or the count alone where it is all rows or their number is not known."""
    return f"{count:,}" if official is None or count == official else f"{count:,} of {official:,}"

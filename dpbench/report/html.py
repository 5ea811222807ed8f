"""HTML fragments: a table with its numbers linked to their records."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpbench.report.data import Entry, TableData
from dpbench.report.layout import Block, blocks, interval_of, marks_of, published_in
from dpbench.report.words import label_text, number, short, spell

SYMBOLS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "≈", "not run": "○"}


def slug(*parts: str) -> str:
    """An id for an element: `claim-automatic-glue_base-A1`."""
    return "-".join("".join(c if c.isalnum() or c in "_-" else "_" for c in part) for part in parts)


def header_rows(block: Block) -> list[list[tuple[str, int]]]:
    """Per column axis, (text, number of columns it spans), equal neighbours joined."""
    texts = [block.column_texts(c) for c in block.columns]
    rows = []
    for level in range(len(block.column_axes)):
        groups = [(key[-1], len(list(group))) for key, group in groupby(texts, key=lambda t: t[: level + 1])]
        rows.append(groups)
    return rows


def only_place(block: Block) -> str:
    """Where all values of a table with several columns come from, if it is one place: said once then, not above every column."""
    places = {column.place_text for column in block.columns if column.place}
    return places.pop() if len(places) == 1 and len(block.columns) > 1 else ""


def href(table: TableData, entry: Entry) -> str:
    """Where a number's evidence is: its record, or the document it was read in."""
    if entry.runs:
        return f"#record-{entry.runs[0]}"
    return f"#{slug('source', table.paper, table.table, str(published_in(table).index(entry.source)))}"


def hint(entry: Entry) -> str:
    """What a pointer over a number shows."""
    parts = [entry.place_text, entry.spread_kind]
    parts += [f"{entry.n} seeds" if len(entry.by_seed) > 1 else ""]
    parts += [f"source: {entry.source}" if entry.source else "", f"record {', '.join(entry.runs)}" if entry.runs else ""]
    return "; ".join(p for p in [*parts, entry.note] if p)


def environment() -> Environment:
    """Jinja with this package's templates and words. Everything is escaped unless it is marked."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"short": short, "spell": spell, "slug": slug, "words": lambda text: str(text).replace("_", " ")}
    functions: dict[str, Any] = {
        "blocks": blocks,
        "header_rows": header_rows,
        "only_place": only_place,
        "href": href,
        "hint": hint,
        "slug": slug,
        "label_text": label_text,
        "number": number,
        "marks_of": marks_of,
        "interval_of": interval_of,
        "published_in": published_in,
        "symbols": SYMBOLS,
    }
    made.globals |= functions
    return made


def table_fragment(table: TableData) -> str:
    """The table as a piece of HTML: blocks, legend and where published values were read. Record links lead within the report."""
    return environment().get_template("fragment.html.j2").render(table=table)

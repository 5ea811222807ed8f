"""Write HTML fragments: a table with its numbers linked to their records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpbench.report.data import Entry, TableData
from dpbench.report.layout import Block, blocks, interval_of, marks_of, published_in
from dpbench.report.words import number, short, spell

SYMBOLS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "≈", "not run": "○"}


def slug(*parts: str) -> str:
    """Return an id for an element: `claim-automatic-glue_base-A1`."""
    return "-".join("".join(c if c.isalnum() or c in "_-" else "_" for c in part) for part in parts)


def only_place(block: Block) -> str:
    """Return the one place of all values of a table with several columns, else "": it is then named once, not in every column."""
    places = {column.place_text for column in block.columns if column.place}
    return places.pop() if len(places) == 1 and len(block.columns) > 1 else ""


def href(table: TableData, entry: Entry) -> str:
    """Return the link to the evidence of a number: its record, or the document it was read in."""
    if entry.runs:
        return f"#record-{entry.runs[0]}"
    return f"#{slug('source', table.paper, table.table, str(published_in(table).index(entry.source)))}"


def hint(entry: Entry) -> str:
    """Return the text that a pointer over a number shows."""
    parts = [entry.place_text, entry.spread_kind]
    parts += [f"{entry.n} seeds" if len(entry.by_seed) > 1 else ""]
    parts += [f"source: {entry.source}" if entry.source else "", f"record {', '.join(entry.runs)}" if entry.runs else ""]
    return "; ".join(p for p in [*parts, entry.note] if p)


def environment() -> Environment:
    """Return a Jinja environment with this package's templates and functions. It escapes everything that is not `Markup`."""
    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {"short": short, "spell": spell, "slug": slug, "words": lambda text: str(text).replace("_", " ")}
    functions: list[Callable[..., Any]] = [blocks, only_place, href, hint, slug, number, marks_of, interval_of, published_in]
    jinja.globals |= {function.__name__: function for function in functions} | {"symbols": SYMBOLS}
    return jinja


def table_fragment(table: TableData) -> str:
    """Return the table as a piece of HTML: blocks, legend and the sources of published values.

    Its links to records lead to the report that contains it.
    """
    return environment().get_template("fragment.html.j2").render(table=table)

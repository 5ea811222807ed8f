"""Write a table as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from dpbench.files import write_atomic
from dpbench.report.cells import cell
from dpbench.report.data import TableData
from dpbench.report.html import table_fragment
from dpbench.report.layout import Block, Slot, blocks, published_in, sources_used
from dpbench.report.rows import rows_used
from dpbench.report.words import EMPTY

_VALUES = ["value", "text", "unit", "spread", "spread_kind", "low", "high", "n", "by_seed", "rounds", "runs"]
_KINDS = ["synthetic", "simulated", "counted"]
_PRIVACY = ["epsilon", "epsilon_rdp", "target_epsilon", "delta", "noise_multiplier", "relation", "validity", "reasons"]
_ORIGINS = ["source", "sources", "warnings", "note"]


def csv_columns(table: TableData) -> list[str]:
    """Return the columns of the CSV. An axis is named as in the table; the values of the mechanism start with `privacy_`."""
    axes = [*table.rows, *table.columns]
    return [
        "paper",
        "table",
        "origin",
        "tier",
        "machine",
        *axes,
        "metric",
        *_VALUES,
        *_KINDS,
        *(f"privacy_{n}" for n in _PRIVACY),
        *_ORIGINS,
    ]


def _cell(value: Any) -> Any:
    """Return a value for a field: an unknown value is an empty field; lists and mappings are JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return cell(value)


def csv_rows(table: TableData) -> Iterator[dict[str, Any]]:
    """Yield one row per entry."""
    for entry in table.entries:
        row: dict[str, Any] = {"paper": table.paper, "table": table.table, "metric": entry.metric}
        row |= {name: getattr(entry, name) for name in ("origin", "tier", "machine")} | entry.labels
        row |= {name: getattr(entry, name) for name in [*_VALUES, *_KINDS, *_ORIGINS]}
        row["n"] = entry.n or None  # not known for a published value
        row |= {f"privacy_{n}": getattr(entry.privacy, n) if entry.privacy else None for n in _PRIVACY}
        yield {name: _cell(value) for name, value in row.items()}


def to_csv(table: TableData) -> str:
    """Return every entry with all that is known of it as CSV; an empty field is an unknown value, never 0."""
    out = io.StringIO()
    columns = csv_columns(table)
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writerow({name: cell(name) for name in columns})
    writer.writerows(csv_rows(table))
    return out.getvalue()


def _source_text(table: TableData) -> str:
    venue = f", {table.source.venue}" if table.source.venue else ""
    where = f" arXiv {table.source.arxiv}" if table.source.arxiv else ""
    return f"{table.source.phrase}{where}{venue}"


def _md(text: str) -> str:
    return (
        text.replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("*", "\\*")
        .replace("_", "\\_")
        .replace("<", "&lt;")
        .replace("[", "\\[")
        .replace("]", "\\]")
        .replace("`", "\\`")
        .replace("\r", " ")
        .replace("\n", " ")
    )


def to_markdown(table: TableData) -> str:
    """Return one pipe table per main metric."""
    lines = [f"# {_md(table.title)}", "", f"{_md(_source_text(table))}. Tier run here: {table.tier}.", ""]
    for block in blocks(table):
        heads = [" · ".join([*block.column_texts(c), c.place_text]) for c in block.columns]
        lines += [f"## {_md(block.heading)}", ""]
        lines.append("| " + " | ".join(_md(t) for t in [*(a.replace("_", " ") for a in block.row_axes), *heads]) + " |")
        lines.append("|" + " --- |" * len(block.row_axes) + " ---: |" * len(block.columns))
        for row, slots in zip(block.rows, block.slots, strict=True):
            lines.append("| " + " | ".join(_md(t) for t in [*block.row_values(row), *(s.plain for s in slots)]) + " |")
        lines += ["", *(f"- {_md(note)}" for note in [*block.legend, *block.footnotes]), ""]
    sources = [*(f"published: {s}" for s in published_in(table)), *sources_used(table)]
    if sources:
        lines += ["## Sources", "", *(f"- {_md(s)}" for s in sources), ""]
    if rows := rows_used(table):
        lines += ["## Rows", "", *(f"- {_md(r)}" for r in rows), ""]
    for item in table.related:
        lines += [f"## {_md(item.title)}", "", _md(item.says), ""]
        lines += ["| " + " | ".join(map(_md, row)) + " |" for row in (item.columns, ["---"] * len(item.columns), *item.rows)]
        lines += ["", *(f"- {_md(source)}" for source in item.sources), ""]
    if table.notes:
        lines += ["## Notes", "", *(f"- {_md(n)}" for n in table.notes), ""]
    return "\n".join(lines)


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "*": r"$^{*}$",
    "ε": r"$\varepsilon$",
    "∞": r"$\infty$",
    "−": "$-$",
    "–": "--",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "\n": " ",
    "\r": " ",
}


def escape_latex(text: str) -> str:
    """Escape a text so that LaTeX prints it literally, with the marks of this package as mathematics."""
    return "".join(_TEX.get(character, character) for character in text)


def _tex_header(block: Block) -> Iterator[str]:
    """Yield the lines of the header: one per column axis, equal neighbours joined, then the origins."""
    lead = len(block.row_axes)
    texts = [block.column_texts(c) for c in block.columns]
    for level in range(len(block.column_axes)):
        cells, rules, first_column = [], [], lead + 1
        for key, group in groupby(texts, key=lambda t: t[: level + 1]):
            width = len(list(group))
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(key[-1])}}}")
            rules.append(rf"\cmidrule(lr){{{first_column}-{first_column + width - 1}}}")
            first_column += width
        yield " & ".join([""] * lead + cells) + r" \\"
        yield " ".join(rules)
    heads = [*(a.replace("_", " ") for a in block.row_axes), *(c.place_text for c in block.columns)]
    yield " & ".join(escape_latex(h) for h in heads) + r" \\"


def _tex_slot(slot: Slot) -> str:
    return "--" if slot.text == EMPTY else escape_latex(slot.plain)


def to_latex(table: TableData) -> str:
    """Return one booktabs table per main metric; the preamble needs \\usepackage{booktabs}."""
    parts = [f"% {table.name}: needs \\usepackage{{booktabs}}"]
    for block in blocks(table):
        notes = [*block.legend, *block.footnotes]
        caption = f"{table.title}: {block.heading}. {_source_text(table)}."
        parts += [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(caption)}}}"]
        parts += [
            rf"\begin{{tabular}}{{{'l' * len(block.row_axes)}{'r' * len(block.columns)}}}",
            r"\toprule",
            *_tex_header(block),
        ]
        parts.append(r"\midrule")
        for row, slots in zip(block.rows, block.slots, strict=True):
            parts.append(" & ".join([*map(escape_latex, block.row_values(row)), *map(_tex_slot, slots)]) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}"]
        if notes:
            parts += [r"\par\footnotesize", *(escape_latex(note) + r" \par" for note in notes)]
        parts.append(r"\end{table}")
    return "\n".join(parts) + "\n"


def write_tables(table: TableData, folder: Path) -> list[Path]:
    """Write `<folder>/<table>.{csv,md,tex,html}`, each atomically.

    Raises:
        DpbenchError: a file cannot be written.
    """
    written = []
    for ending, text in (
        ("csv", to_csv(table)),
        ("md", to_markdown(table)),
        ("tex", to_latex(table)),
        ("html", table_fragment(table)),
    ):
        path = folder / f"{table.table}.{ending}"
        write_atomic(path, text)
        written.append(path)
    return written

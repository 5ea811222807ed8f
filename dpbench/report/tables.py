"""Write a table as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from dpbench.files import write_atomic
from dpbench.report.cells import csv_text
from dpbench.report.data import TableData
from dpbench.report.frames import frame
from dpbench.report.html import table_fragment
from dpbench.report.layout import Block, blocks, published_in, sources_used
from dpbench.report.rows import rows_used


def _field(value: object) -> object:
    """Return a value for a CSV field: lists and mappings are JSON, and empty ones an empty field."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return value


def to_csv(table: TableData) -> str:
    """Return the frame of a table as CSV; an empty field is an unknown value, never 0."""
    return csv_text(frame(table).astype(object).map(_field, na_action="ignore"))


def _source_text(table: TableData) -> str:
    venue = f", {table.source.venue}" if table.source.venue else ""
    where = f" arXiv {table.source.arxiv}" if table.source.arxiv else ""
    return f"{table.source.phrase}{where}{venue}"


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*_[]`"} | {"<": "&lt;", "\r": " ", "\n": " "})


def _md_row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(text.translate(_MARKDOWN) for text in texts)} |"


def _md_section(title: str, items: list[str]) -> list[str]:
    return [f"## {title}", "", *_md_list(items)] if items else []


def _md_list(items: list[str]) -> list[str]:
    return [*(f"- {item.translate(_MARKDOWN)}" for item in items), ""]


def to_markdown(table: TableData) -> str:
    """Return one pipe table per main metric."""
    title, source = (text.translate(_MARKDOWN) for text in (table.title, _source_text(table)))
    lines = [f"# {title}", "", f"{source}. Tier run here: {table.tier}.", ""]
    for block in blocks(table):
        heads = [" · ".join([*block.column_texts(c), c.place_text]) for c in block.columns]
        lines += [f"## {block.heading.translate(_MARKDOWN)}", "", _md_row([*block.row_heads, *heads])]
        lines.append("|" + " --- |" * len(block.row_axes) + " ---: |" * len(block.columns))
        for row, slots in zip(block.rows, block.slots, strict=True):
            lines.append(_md_row([*block.row_values(row), *(s.plain for s in slots)]))
        lines += ["", *_md_list([*block.legend, *block.footnotes])]
    lines += _md_section("Sources", [*(f"published: {s}" for s in published_in(table)), *sources_used(table)])
    lines += _md_section("Rows", rows_used(table))
    for item in table.related:
        lines += [f"## {item.title.translate(_MARKDOWN)}", "", item.says.translate(_MARKDOWN), ""]
        lines += map(_md_row, (item.columns, ["---"] * len(item.columns), *item.rows))
        lines += ["", *_md_list(item.sources)]
    return "\n".join(lines + _md_section("Notes", table.notes))


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
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
    | {c: f"\\{c}" for c in "&%$#_{}"}
)


def escape_latex(text: str) -> str:
    """Escape a text so that LaTeX prints it literally, with the marks of this package as mathematics."""
    return text.translate(_LATEX)


def _tex_row(texts: Iterable[str]) -> str:
    return " & ".join(map(escape_latex, texts)) + r" \\"


def _tex_header(block: Block) -> Iterator[str]:
    """Yield the lines of the header: one per column axis, equal neighbours joined, then the origins."""
    lead = len(block.row_axes)
    for groups in block.header_rows():
        cells, rules, first_column = [], [], lead + 1
        for text, width in groups:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(text)}}}")
            rules.append(rf"\cmidrule(lr){{{first_column}-{first_column + width - 1}}}")
            first_column += width
        yield " & ".join([""] * lead + cells) + r" \\"
        yield " ".join(rules)
    yield _tex_row([*block.row_heads, *(c.place_text for c in block.columns)])


def to_latex(table: TableData) -> str:
    """Return one booktabs table per main metric; the preamble needs \\usepackage{booktabs}."""
    lines = [f"% {table.name}: needs \\usepackage{{booktabs}}"]
    for block in blocks(table):
        caption = escape_latex(f"{table.title}: {block.heading}. {_source_text(table)}.")
        alignment = "l" * len(block.row_axes) + "r" * len(block.columns)
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{alignment}}}"]
        lines += [r"\toprule", *_tex_header(block), r"\midrule"]
        for row, slots in zip(block.rows, block.slots, strict=True):
            lines.append(_tex_row([*block.row_values(row), *(s.plain for s in slots)]))
        lines += [r"\bottomrule", r"\end{tabular}"]
        if notes := [*block.legend, *block.footnotes]:
            lines += [r"\par\footnotesize", *(escape_latex(note) + r" \par" for note in notes)]
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def write_tables(table: TableData, folder: Path) -> list[Path]:
    """Write `<folder>/<table>.{csv,md,tex,html}`, each atomically.

    Raises:
        DpbenchError: a file cannot be written.
    """
    texts = {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table), "html": table_fragment(table)}
    paths = {folder / f"{table.table}.{ending}": text for ending, text in texts.items()}
    for path, text in paths.items():
        write_atomic(path, text)
    return list(paths)

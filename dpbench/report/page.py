"""Render the report: one self-contained page, without scripts and without network."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from dpbench.records.schema import Privacy
from dpbench.report.claims import VERDICTS, Judgement
from dpbench.report.data import ORIGINS, Entry, RecordInfo, TableData, TierInfo, grouped
from dpbench.report.html import environment, slug
from dpbench.report.layout import Block, blocks, sources_used, with_values
from dpbench.report.rows import rows_used
from dpbench.report.words import flatten, spell, whose
from dpbench.spec.models import Plot

Svgs = dict[tuple[str, str, str], str]
"""(paper, table, plot) -> SVG text."""

_WIDE = 480  # points, of two panels side by side; a narrower plot fits on the screen of a phone


@dataclass(frozen=True)
class _PrivacyStatement:
    """One privacy statement and where it applies. cells: in words, each with its first run."""

    cells: list[tuple[str, str]]
    place: str
    privacy: Privacy | None


@dataclass(frozen=True)
class _View:
    """A table with the content of its section. tiers: tier -> (setting, value, whose); coverage: origin -> cells with a value."""

    table: TableData
    blocks: list[Block]
    plots: list[tuple[Plot, Markup]]
    claims: list[Judgement]
    sources: list[str]
    synthetic: bool
    measured: bool
    privacy: list[_PrivacyStatement]
    notes: list[str]
    tiers: dict[str, list[tuple[str, str, str]]]
    coverage: dict[str, int]
    states: str


def inline_svg(text: str, name: str) -> Markup:
    """Return an SVG for use inside a page: without prolog and foreign addresses, with ids that `name` makes unique."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    ids = set(re.findall(r'\bid="([^"]+)"', body))
    body = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{name}-{m[1]}"', body)
    body = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{name}-{m[1]})" if m[1] in ids else m[0], body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', lambda m: f'href="#{name}-{m[1]}"', body)
    width = re.search(r'<svg[^>]*\bwidth="([0-9.]+)pt"', body)
    if width and float(width[1]) > _WIDE:
        body = body.replace("<svg", '<svg class="wide"', 1)
    return Markup(body)  # drawn by dpbench.report.plots, which escapes labels


def _privacy(table: TableData) -> list[_PrivacyStatement]:
    """Return the statements of each place, with the cells that share them. Axes on which all cells agree are not named."""
    entries_of: dict[tuple[str, str], dict[tuple[str, ...], Entry]] = {}
    for entry in table.entries:
        if entry.privacy is not None and entry.runs:
            cells = entries_of.setdefault((entry.place_text, entry.privacy.model_dump_json()), {})
            cells.setdefault(tuple(entry.runs), entry)
    all_entries = [entry for cells in entries_of.values() for entry in cells.values()]
    differ = [a for a in table.axes if len({e.labels[a] for e in all_entries}) > 1] or table.rows
    statements = []
    for (place, _), cells in entries_of.items():
        cell_texts = [(spell({a: e.labels[a] for a in differ}), e.runs[0]) for e in cells.values()]
        statements.append(_PrivacyStatement(cell_texts, place, next(iter(cells.values())).privacy))
    return statements


def _tier_rows(info: TierInfo) -> list[tuple[str, str, str]]:
    rows = [(key, _spell(value), whose(key, info.origin)) for key, value in flatten(info.settings)]
    for axis, values in info.axes.items():
        for label, changed in values.items():
            for key, value in flatten(changed):
                rows.append((f"{axis} {label}: {key}", _spell(value), whose(key, info.origin)))
    for override in info.overrides:
        cells = ", ".join(f"{axis} {' or '.join(v) if isinstance(v, list) else v}" for axis, v in override.where.items())
        rows += [(f"{cells}: {key}", _spell(value), whose(key, info.origin)) for key, value in flatten(override.settings)]
    return [*rows, ("seeds", ", ".join(map(str, info.seeds)), whose("seeds", info.origin))]


def _spell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_spell, value)) or "none"
    return "none" if value is None or value == {} else str(value)


def _states(table: TableData) -> str:
    """Count the states: `4 recorded, 2 not run`; the reasons of skipped cells are at the table itself."""
    counts = Counter(cell.state.split(":")[0] for cell in table.cells)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def _view(table: TableData, judgements: list[Judgement], svgs: Svgs) -> _View:
    valued = with_values(table)
    plots = []
    for plot in table.plots:
        if (svg := svgs.get((table.paper, table.table, plot.name))) is not None:
            plots.append((plot, inline_svg(svg, slug("plot", table.paper, table.table, plot.name))))
    notes = list(table.notes) + [f"Tier {t.tier}: {t.note}" for t in table.tiers if t.note]
    notes += dict.fromkeys(f"Warning of {e.place_text}: {w}" for e in table.entries for w in e.warnings)
    return _View(
        table=table,
        blocks=blocks(table),
        plots=plots,
        claims=[j for j in judgements if (j.paper, j.table) == (table.paper, table.table)],
        sources=[*sources_used(table), *rows_used(table)],
        synthetic=any(e.synthetic for e in valued),
        measured=any(e.origin != "published" for e in valued),
        privacy=_privacy(table),
        notes=notes,
        tiers={info.tier: _tier_rows(info) for info in table.tiers},
        coverage={o: len({tuple(e.labels.values()) for e in valued if e.origin == o}) for o in ORIGINS},
        states=_states(table),
    )


def render(tables: list[TableData], claims: list[Judgement], svgs: Svgs, scope: Literal["here", "recorded"]) -> str:
    """Render the report as one HTML text.

    Args:
        svgs: plots by (paper, table, plot); one that is missing is left out.
        scope: with `recorded` the head says that the report contains nothing of this machine.
    """
    views = [_view(table, claims, svgs) for table in tables]
    records: dict[str, list[RecordInfo]] = {}
    for view in views:
        for info in view.table.records:
            same = records.setdefault(info.run, [])
            if all(info.machine != other.machine for other in same):
                same.append(info)
    env = environment()
    return env.get_template("page.html.j2").render(
        style=Markup(env.get_template("style.css").render()),
        scope=scope,
        tiers=list(dict.fromkeys(t.tier for t in tables)),
        newest=max((i.created for infos in records.values() for i in infos), default=""),
        views=views,
        papers=grouped(views, lambda view: view.table.paper),
        claims=claims,
        verdicts=VERDICTS,
        records=dict(sorted(records.items())),
        left_out=list({item.where: item for table in tables for item in table.left_out}.values()),
    )

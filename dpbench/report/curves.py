"""Draw a metric over the steps of its runs: a line per row, a panel per place and value of `x`."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpbench.report.data import Entry, TableData, grouped
from dpbench.report.panels import grid
from dpbench.report.words import heading, label_text
from dpbench.spec.models import Plot

Curve = list[tuple[float, float]]
_REFERENCE = "inf"  # of `x`: a row without it (non-private training has no epsilon) is drawn in every panel of its place


def curves_of(table: TableData, entry: Entry) -> Curve:
    """Return (step, mean over seeds) of the curves in an entry's records (`facts.curve`); empty if one record has none."""
    records = {(info.run, info.machine): info.record for info in table.records}
    recorded_curves = [records.get((run, entry.machine), {}).get("facts", {}).get("curve") for run in entry.runs]
    if not recorded_curves or not all(recorded_curves):
        return []
    by_step: dict[float, list[float]] = {}
    for curve in recorded_curves:
        for step, value in curve:
            by_step.setdefault(float(step), []).append(float(value))
    return [(step, statistics.fmean(values)) for step, values in sorted(by_step.items()) if len(values) == len(recorded_curves)]


def figure(table: TableData, plot: Plot, entries: list[Entry], colours: list[str], dashes: list[Any]) -> Figure | None:
    """Draw `entries`, which all have values; None where no record has a curve."""
    drawn = [(entry, curve) for entry in entries if (curve := curves_of(table, entry))]
    if not drawn:
        return None
    lines = [a for a in table.axes if a != plot.x and a not in plot.panels]
    names = _names(table, plot, lines, [entry for entry, _ in drawn])
    widths = [2.8 - 1.6 * i / len(names) for i in range(len(names))]  # a line that later ones cover still shows at its sides
    style = {row: (colours[i % len(colours)], dashes[i // len(colours) % len(dashes)], widths[i]) for i, row in enumerate(names)}
    panels = _panels(plot, drawn)
    across = 1 if len(panels) == 1 else 2
    fig, panel_axes = grid(len(panels), across, 2.8, 0.3, legend=0.25 * len(names) / across)
    handles: dict[tuple[str, ...], Line2D] = {}
    for axes, ((place, *values), panel_curves) in zip(panel_axes, panels.items(), strict=True):
        for entry, curve in panel_curves:
            row = _row(entry, plot, lines, names)
            colour, dash, width = style[row]
            drawing = axes.plot(*zip(*curve, strict=True), color=colour, linestyle=dash, linewidth=width, label=names[row])
            handles[row] = drawing[0]
        where = ", ".join(label_text(a, v) for a, v in zip([plot.x, *plot.panels], values, strict=True))
        axes.set_title(f"{where}\n{place}", loc="left")
        axes.set_ylabel(heading(plot.metric, table.metrics[plot.metric].unit, "\n"))
        axes.set_xlabel("steps")
        axes.grid(axis="y", alpha=0.18, linewidth=0.8)
    fig.legend(handles=[handles[row] for row in names], loc="outside upper left", ncols=across, frameon=False, handlelength=2.2)
    return fig


def _names(table: TableData, plot: Plot, lines: list[str], entries: list[Entry]) -> dict[tuple[str, ...], str]:
    """Return the name of each row's line, in the table's order, without the axes on which all rows agree.

    A row that has runs both with a value of x and with the reference value is two lines; the key and the name of the reference
    line end with the reference value.
    """
    across: dict[tuple[str, ...], set[str]] = {}
    for entry in entries:
        across.setdefault(tuple(entry.labels[a] for a in lines), set()).add(entry.labels[plot.x])
    rows = sorted(across, key=lambda row: [table.axes[a].index(v) for a, v in zip(lines, row, strict=True)])
    differ = [i for i, a in enumerate(lines) if len({row[i] for row in rows}) > 1 or a == plot.series]
    names = {}
    for row in rows:
        names[row] = ", ".join(label_text(lines[i], row[i]) for i in differ)
        if across[row] > {_REFERENCE}:
            names[*row, _REFERENCE] = f"{names[row]}, {label_text(plot.x, _REFERENCE)}"
    return names


def _row(entry: Entry, plot: Plot, lines: list[str], names: dict[tuple[str, ...], str]) -> tuple[str, ...]:
    """Return the key in `names` of an entry's line."""
    row = tuple(entry.labels[a] for a in lines)
    reference_row = (*row, entry.labels[plot.x])
    return reference_row if reference_row in names else row


def _panels(plot: Plot, drawn: list[tuple[Entry, Curve]]) -> dict[tuple[str, ...], list[tuple[Entry, Curve]]]:
    """Return the curves of each panel (place, value of x, values of the panel axes); reference rows are in every panel."""
    panels = grouped(drawn, lambda pair: (pair[0].place_text, *(pair[0].labels[a] for a in (plot.x, *plot.panels))))
    for place, x, *panel_values in [key for key in panels if key[1] == _REFERENCE]:
        others = [key for key in panels if key[0] == place and list(key[2:]) == panel_values and key[1] != x]
        for other in others:
            panels[other] = panels[(place, x, *panel_values)] + panels[other]
        if others:
            del panels[(place, x, *panel_values)]
    return panels

"""Draw a metric over two axes as coloured cells with their values: a panel per place and value of the other axes."""

from __future__ import annotations

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dpbench.report.data import Entry, TableData, grouped
from dpbench.report.panels import grid, panel_axes
from dpbench.report.words import label_text, number
from dpbench.spec.models import Plot

_COLOURS = "viridis"  # even in lightness, so that it reads in grey too
_MIDDLE = 0.55  # of the scale: below it cells are dark, and their text is white


def figure(table: TableData, plot: Plot, entries: list[Entry]) -> Figure:
    """Draw `entries`, which all have values: `x` across, `series` down, one colour scale for all panels."""
    axes_in_titles = panel_axes(table, plot, entries)
    panels = grouped(entries, lambda e: (*(label_text(a, e.labels[a]) for a in axes_in_titles), e.place_text))
    values = [entry.value or 0.0 for entry in entries]
    low, high = min(values), max(values)
    digits = min(1, table.metrics[plot.metric].digits)
    across = 1 if len(panels) == 1 else 2
    rows = max(len({e.labels[plot.series] for e in panel_entries}) for panel_entries in panels.values())
    fig, axes_of_panels = grid(len(panels), across, 0.34 * rows + 1.1, 0.2)
    colours = colormaps[_COLOURS]
    for axes, (names, panel_entries) in zip(axes_of_panels, panels.items(), strict=True):
        xs, ys = (_present(table, axis, panel_entries) for axis in (plot.x, plot.series))
        for entry in panel_entries:
            share = 0.5 if high == low else ((entry.value or 0.0) - low) / (high - low)
            position = xs.index(entry.labels[plot.x]), ys.index(entry.labels[plot.series])
            axes.add_patch(Rectangle((position[0] - 0.5, position[1] - 0.5), 1, 1, facecolor=colours(share), linewidth=0))
            ink = "white" if share < _MIDDLE else "black"
            axes.text(*position, number(entry.value or 0.0, digits), ha="center", va="center", color=ink, fontsize=9)
        axes.set_xlim(-0.5, len(xs) - 0.5)
        axes.set_ylim(-0.5, len(ys) - 0.5)
        axes.set_xticks(range(len(xs)), xs)
        axes.set_yticks(range(len(ys)), ys)
        axes.set_xlabel(plot.x.replace("_", " "))
        axes.set_ylabel(plot.series.replace("_", " "))
        axes.set_title(", ".join(names), loc="left")
    return fig


def _present(table: TableData, axis: str, entries: list[Entry]) -> list[str]:
    """Return the values of an axis that have an entry, in the table's order."""
    present = {e.labels[axis] for e in entries}
    return [value for value in table.axes[axis] if value in present]

"""A metric against another one: a line per value of `series` through its cells, a panel per place and value of `panels`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from dpbench.report.data import Entry, TableData
from dpbench.report.words import label_text
from dpbench.spec.models import Plot

_MARKERS = "os^Dvp"
Point = tuple[float, Entry]
"""The value of the metric across, and the entry of the one upwards."""


def points_of(table: TableData, plot: Plot, entries: list[Entry]) -> list[Point]:
    """Entries whose cell has a value of the metric across too, by that value."""
    found = [(table.find(entry.labels, plot.x, entry.place), entry) for entry in entries]
    points = [(other.value, entry) for other, entry in found if other is not None and other.value is not None]
    return sorted(points, key=lambda point: point[0])


def figure(table: TableData, plot: Plot, points: list[Point], colours: list[str]) -> Figure:
    """The drawing of `points`, at least one."""
    panels: dict[tuple[str, ...], list[Point]] = {}
    for across, entry in points:
        title = (*(label_text(a, entry.labels[a]) for a in plot.panels), entry.place_text)
        panels.setdefault(title, []).append((across, entry))
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    made = Figure(figsize=(5.0 * columns, 2.6 * rows + 0.5), layout="constrained")
    flat = list(made.subplots(rows, columns, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for axes, (title, own) in zip(flat, panels.items(), strict=False):
        for number, value in enumerate(table.axes[plot.series]):
            drawn = [(across, entry.value or 0.0) for across, entry in own if entry.labels[plot.series] == value]
            if drawn:
                xs, ys = zip(*drawn, strict=True)
                style: dict[str, Any] = {"color": colours[number % len(colours)], "marker": _MARKERS[number % len(_MARKERS)]}
                (line,) = axes.plot(xs, ys, label=label_text(plot.series, value), linewidth=1.2, **style)
                handles.setdefault(value, line)
        axes.set_title(", ".join(title), loc="left")
        for metric, put in ((plot.x, axes.set_xlabel), (plot.metric, axes.set_ylabel)):
            unit = table.metrics[metric].unit
            put(metric.replace("_", " ") + (f" ({unit})" if unit else ""))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.18, linewidth=0.8)
    for axes in flat[len(panels) :]:
        axes.remove()
    made.legend(handles=[*handles.values()], loc="outside upper left", ncols=2 * columns, frameon=False, handlelength=2.2)
    return made

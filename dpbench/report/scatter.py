"""Draw a metric against another one: a marker per cell, its shape by `series`, a panel per place and value of `panels`."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpbench.report.data import Entry, TableData, grouped
from dpbench.report.panels import grid
from dpbench.report.words import heading, label_text
from dpbench.spec.models import Plot

_MARKERS = "os^Dvp"
_AREA = 36.0
"""Area of a marker in square points; where areas differ, the largest marker has three times as much."""
_CLOSE = 0.06
"""Share of a panel's height within which two names are written as one."""
Point = tuple[float, Entry]
"""The value of the metric on the x axis, and the entry of the one on the y axis."""


def points_of(table: TableData, plot: Plot, entries: list[Entry]) -> list[Point]:
    """Return the entries whose cell also has a value of the metric on the x axis, sorted by that value."""
    pairs = [(table.find(entry.labels, plot.x, entry.place), entry) for entry in entries]
    points = [(other.value, entry) for other, entry in pairs if other is not None and other.value is not None]
    return sorted(points, key=lambda point: point[0])


def figure(table: TableData, plot: Plot, points: list[Point], colours: list[str]) -> Figure:
    """Draw `points`, at least one."""
    panels = grouped(points, lambda point: (*(label_text(a, point[1].labels[a]) for a in plot.panels), point[1].place_text))
    columns = 1 if len(panels) == 1 else 2
    fig, panel_axes = grid(len(panels), columns, 2.6, 0.5)
    handles: dict[str, Line2D] = {}
    areas = _areas(table, plot, points)
    for axes, (title, panel_points) in zip(panel_axes, panels.items(), strict=True):
        for number, value in enumerate(table.axes[plot.series]):
            drawn = [point for point in panel_points if point[1].labels[plot.series] == value]
            if not drawn:
                continue
            xs, ys = zip(*((across, entry.value or 0.0) for across, entry in drawn), strict=True)
            colour = colours[number % len(colours)]
            path = len(drawn) == len(set(xs)) > 1  # cells that share an x have no order along a line
            marker = _MARKERS[number % len(_MARKERS)]
            style: dict[str, Any] = {"color": colour, "marker": marker, "linewidth": 1.2 if path else 0.0}
            (line,) = axes.plot(xs, ys, label=label_text(plot.series, value), **style, markersize=0 if plot.area else None)
            if plot.area:
                sizes = [areas[id(entry)] for _, entry in drawn]
                axes.scatter(xs, ys, sizes, color=colour, marker=marker, alpha=0.75, linewidths=0)
                (line,) = axes.plot([], [], label=line.get_label(), **style)
            if len(drawn) > 1 and not path:
                values = [entry.value or 0.0 for _, entry in panel_points]
                close = _CLOSE * (max(values) - min(values))
                _annotate(axes, drawn, _varying(plot, panel_points), colour, number % 2 == 0, close)
            if path or value not in handles:
                handles[value] = line
        axes.set_title(", ".join(title), loc="left")
        axes.set_xlabel(heading(plot.x, table.metrics[plot.x].unit))
        axes.set_ylabel(heading(plot.metric, table.metrics[plot.metric].unit))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.18, linewidth=0.8)
    fig.legend(handles=[*handles.values()], loc="outside upper left", ncols=2 * columns, frameon=False, handlelength=2.2)
    return fig


def _areas(table: TableData, plot: Plot, points: list[Point]) -> dict[int, float]:
    """Return the area of each entry's marker in square points, by identity; `_AREA` where the metric has no value."""
    area_entries = {id(entry): table.find(entry.labels, plot.area, entry.place) for _, entry in points} if plot.area else {}
    values = {key: other.value for key, other in area_entries.items() if other is not None and other.value}
    largest = max(values.values(), default=1.0)
    return {id(entry): _AREA for _, entry in points} | {key: 3 * _AREA * value / largest for key, value in values.items()}


def _varying(plot: Plot, points: list[Point]) -> list[str]:
    """Return the axes that differ within a panel and that neither its markers nor its title show."""
    shown = {plot.series, *plot.panels}
    return [a for a in points[0][1].labels if a not in shown and len({entry.labels[a] for _, entry in points}) > 1]


def _annotate(axes: Axes, drawn: list[Point], varying: list[str], colour: str, left: bool, close: float) -> None:
    """Write beside the markers of one series which cells they are; markers close to each other share one text."""
    groups: list[list[Point]] = []
    for point in sorted(drawn, key=lambda p: (p[0], p[1].value or 0.0)):
        base = groups[-1][0] if groups else None
        near = base is not None and base[0] == point[0] and (point[1].value or 0.0) - (base[1].value or 0.0) <= close
        groups[-1].append(point) if near else groups.append([point])
    for group in groups:
        text = "\n".join(" ".join(label_text(a, entry.labels[a]) for a in varying) for _, entry in reversed(group))
        across, entry = group[len(group) // 2]
        offset, side = (-7, "right") if left else (7, "left")
        where: dict[str, Any] = {"xytext": (offset, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(text, (across, entry.value or 0.0), **where, fontsize=7.5, color=colour)

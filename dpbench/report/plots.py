"""Draw a table's plots as SVG: the same values give the same bytes, readable on a phone, in light and in dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from dpbench.report import curves, heatmap, scatter
from dpbench.report.data import Entry, Place, TableData, grouped
from dpbench.report.layout import marks_of, without_smoke
from dpbench.report.panels import grid, panel_axes
from dpbench.report.words import MARKS, heading, label_text
from dpbench.spec.models import Plot

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C8C8C", "#882255", "#999933", "#332288"]
"""Okabe and Ito's colours that can be seen on white and on black."""
_MARKERS = "os^Dvp"
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2))]
_INK = "#010203"  # replaced by currentColor, so that text follows the page's colour
_MEASURED = "DejaVu Sans"  # comes with matplotlib, and is wide: the reader's font fits into the room that it takes
_SHOWN = "system-ui, Helvetica, Arial, sans-serif"
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a machine or a unit may be called anything
    "svg.fonttype": "none",
    "font.family": _MEASURED,
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.5,
    "legend.fontsize": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_Panel = tuple[tuple[str, str], ...]


def _panels(table: TableData, plot: Plot, entries: list[Entry]) -> dict[_Panel, list[Entry]]:
    """Return the entries of each panel, in the table's order."""
    axes = panel_axes(table, plot, entries)
    panel_per_place = plot.kind == "lines" and _far_apart(entries)

    def panel(entry: Entry) -> _Panel:
        return tuple((a, entry.labels[a]) for a in axes) + ((("", entry.place_text),) if panel_per_place else ())

    order = {a: {v: i for i, v in enumerate(table.axes[a])} for a in axes}
    return dict(sorted(grouped(entries, panel).items(), key=lambda item: [order[a][v] if a else v for a, v in item[0]]))


def _far_apart(entries: list[Entry]) -> bool:
    """Return whether one place's values would look like zero on the axis of another's."""
    largest = [max(abs(e.value or 0.0) for e in of_place) for of_place in grouped(entries, lambda e: e.place).values()]
    return max(largest) > 4 * min(largest)


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def _reach(entry: Entry) -> tuple[float, float]:
    """Return the (lower, upper) error: from quantiles over rounds, else from the spread over seeds, else 0."""
    value = entry.value or 0.0
    if entry.low is not None and entry.high is not None:
        return max(0.0, value - entry.low), max(0.0, entry.high - value)
    return (entry.spread or 0.0,) * 2


class _Drawing:
    """The style that the panels of one figure share: colours by series, markers and dashes by place."""

    def __init__(self, table: TableData, plot: Plot, entries: list[Entry]) -> None:
        self.table, self.plot = table, plot
        present = {e.labels[plot.series] for e in entries}
        self.series = [v for v in table.axes[plot.series] if v in present]
        self.colour = {v: COLOURS[i % len(COLOURS)] for i, v in enumerate(table.axes[plot.series])}
        places = dict.fromkeys(e.place for e in entries)
        self.places = sorted(places, key=lambda p: (p.origin != "here", p.tier, p.machine))
        self.x_order = {v: i for i, v in enumerate(table.axes[plot.x])}

    def style(self, place: Place, colour: str) -> dict[str, Any]:
        """Return the colour and the marker of a place, filled for this machine."""
        marker = _MARKERS[self.places.index(place) % len(_MARKERS)]
        return {"color": colour, "marker": marker, "markerfacecolor": colour if place.origin == "here" else "none"}

    def dash(self, place: Place) -> Any:
        return _DASHES[self.places.index(place) % len(_DASHES)] if self.plot.kind == "lines" else "none"

    def lines(self, axes: Axes, entries: list[Entry]) -> None:
        entries = [e for e in entries if math.isfinite(_number(e.labels[self.plot.x]))]
        for place in self.places:
            for value in self.series:
                drawn = [e for e in entries if e.place == place and e.labels[self.plot.series] == value]
                drawn.sort(key=lambda e: _number(e.labels[self.plot.x]))
                if drawn:
                    axes.errorbar(
                        [_number(e.labels[self.plot.x]) for e in drawn],
                        [e.value or 0.0 for e in drawn],
                        yerr=list(zip(*(_reach(e) for e in drawn), strict=True)),
                        **self.style(place, self.colour[value]),
                        linestyle=self.dash(place),
                        markersize=5,
                        linewidth=1.6,
                        elinewidth=1,
                        capsize=2,
                    )
        ticks = sorted({_number(e.labels[self.plot.x]) for e in entries})
        if ticks and ticks[0] > 0:
            axes.set_xscale("log", base=2)
            axes.set_xlim(ticks[0] / 2**0.25, ticks[-1] * 2**0.25)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        if all((e.value or 0.0) >= 0 for e in entries):
            axes.set_ylim(bottom=0)

    def intervals(self, axes: Axes, entries: list[Entry]) -> None:
        groups = sorted({e.labels[self.plot.x] for e in entries}, key=self.x_order.__getitem__)
        kinds = [(v, p) for v in self.series for p in self.places]
        step = 0.8 / max(1, len(kinds))
        for entry in entries:
            value, place = entry.labels[self.plot.series], entry.place
            position = groups.index(entry.labels[self.plot.x]) + (kinds.index((value, place)) - (len(kinds) - 1) / 2) * step
            axes.errorbar(
                [position],
                [entry.value or 0.0],
                yerr=[[side] for side in _reach(entry)],
                **self.style(place, self.colour[value]),
                linestyle="none",
                markersize=6,
                elinewidth=1.6,
                capsize=3,
            )
        axes.set_xticks(range(len(groups)), [label_text(self.plot.x, g) for g in groups])
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.margins(y=0.15)

    def legend(self, entries: Iterable[Entry]) -> list[Line2D]:
        marks: dict[Place, str] = {}
        for entry in entries:
            seen = marks.get(entry.place, "") + marks_of(entry)
            marks[entry.place] = "".join(m for m in MARKS if m in seen)
        handles = [Line2D([], [], color=self.colour[v], linewidth=3, label=label_text(self.plot.series, v)) for v in self.series]
        for place in self.places:
            entry = next(e for e in entries if e.place == place)
            label = f"{entry.place_text}{marks[place]}"
            handles.append(Line2D([], [], **self.style(place, _INK), linestyle=self.dash(place), label=label))
        return handles


def draw(table: TableData, plot: Plot) -> bytes:
    """Draw one plot of this machine's and recorded values as SVG; published and missing values are not drawn.

    Without any value the picture says `not run`.
    """
    entries = [e for e in table.entries if e.metric == plot.metric and e.origin != "published" and e.value is not None]
    entries = without_smoke(table, entries)
    if plot.kind == "lines":
        entries = [e for e in entries if math.isfinite(_number(e.labels[plot.x]))]
    with rc_context(_STYLE | {"svg.hashsalt": f"{table.name}/{plot.name}"}):
        if not entries:
            return _not_run(plot)
        if plot.kind == "curves":
            figure = curves.figure(table, plot, entries, COLOURS, _DASHES)
            return _not_run(plot) if figure is None else _save(figure, plot)
        if plot.kind == "heatmap":
            return _save(heatmap.figure(table, plot, entries), plot)
        if plot.kind == "scatter":
            points = scatter.points_of(table, plot, entries)
            return _save(scatter.figure(table, plot, points, COLOURS), plot) if points else _not_run(plot)
        drawing, panels = _Drawing(table, plot, entries), _panels(table, plot, entries)
        across = 1 if len(panels) <= 3 else 2
        legend = drawing.legend(entries)
        legend_rows = -(-len(legend) // (2 * across))
        figure, axes_of_panels = grid(len(panels), across, 2.35, 0.3, legend=0.25 * legend_rows)
        for axes, (panel, panel_entries) in zip(axes_of_panels, panels.items(), strict=True):
            (drawing.lines if plot.kind == "lines" else drawing.intervals)(axes, panel_entries)
            axes.set_title(", ".join(label_text(a, v) if a else v for a, v in panel), loc="left")
            axes.set_ylabel(heading(plot.metric, table.metrics[plot.metric].unit, "\n"))
            axes.grid(axis="y", color=_INK, alpha=0.18, linewidth=0.8)
            axes.set_axisbelow(True)
        for axes in axes_of_panels[-across:]:
            axes.set_xlabel(plot.x.replace("_", " "))
        figure.legend(handles=legend, loc="outside upper left", ncols=2 * across, frameon=False, handlelength=2.2)
        return _save(figure, plot)


def _not_run(plot: Plot) -> bytes:
    figure = Figure(figsize=(5.0, 1.0))
    figure.text(0.5, 0.5, "not run", ha="center", va="center")
    return _save(figure, plot)


def _save(figure: Figure, plot: Plot) -> bytes:
    """Return a figure as SVG without date or creator, with a title for screen readers."""
    out = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(out, metadata=metadata)  # `savefig` would draw twice: once to lay out
    text = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL).replace(_INK, "currentColor")
    text = text.replace(f"'{_MEASURED}'", _SHOWN)
    opening = re.compile(r"(<svg\b[^>]*?)>")
    return opening.sub(lambda match: f'{match[1]} role="img">\n <title>{escape(plot.title)}</title>', text, count=1).encode()

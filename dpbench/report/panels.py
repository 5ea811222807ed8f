"""The grid of panels that every kind of plot is drawn in."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpbench.report.data import Entry, TableData
from dpbench.spec.models import Plot


def grid(panels: int, across: int, height: float, margin: float, legend: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with `panels` axes of 5 by `height` inches, and room for a legend and a margin."""
    down = -(-panels // across)
    figure = Figure(figsize=(5.0 * across, height * down + legend + margin), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]


def panel_axes(table: TableData, plot: Plot, entries: list[Entry]) -> list[str]:
    """Return the table's axes, other than x and series, whose values differ or that the plot names: each value has a panel."""
    axes = [a for a in table.axes if a not in (plot.x, plot.series)]
    return [a for a in axes if a in plot.panels or len({e.labels[a] for e in entries}) > 1]

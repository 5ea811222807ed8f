"""The values of a table as a pandas DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpbench import paths
from dpbench.report.data import TableData, read_table

if TYPE_CHECKING:
    from pandas import DataFrame

_BEFORE_AXES = {"paper": "string", "table": "string", "origin": "string", "tier": "string", "machine": "string"}
_AFTER_AXES = {
    "metric": "string",
    "value": "Float64",
    "text": "string",
    "unit": "string",
    "spread": "Float64",
    "spread_kind": "string",
    "low": "Float64",
    "high": "Float64",
    "n": "Int64",
    "by_seed": "object",
    "rounds": "object",
    "runs": "object",
    "synthetic": "boolean",
    "simulated": "boolean",
    "counted": "boolean",
    "privacy_epsilon": "Float64",
    "privacy_epsilon_rdp": "Float64",
    "privacy_target_epsilon": "Float64",
    "privacy_delta": "Float64",
    "privacy_noise_multiplier": "Float64",
    "privacy_relation": "string",
    "privacy_validity": "string",
    "privacy_reasons": "object",
    "source": "string",
    "sources": "object",
    "warnings": "object",
    "note": "string",
}


def frame(table: TableData | str) -> DataFrame:
    """Return every entry of a table with all that is known of it: a row for each cell, metric and origin of a value.

    An axis is a column named as in the table, or `axis_NAME` where another column has that name; the values of the mechanism
    start with `privacy_`. Column types are nullable: an unknown value is `pandas.NA`, never 0. `by_seed` holds mappings;
    `rounds`, `runs`, `sources`, `warnings` and `privacy_reasons` hold lists.

    Example:
        The accuracies of a table, published and measured side by side::

            from dpbench.report import frame

            values = frame("automatic/glue_base").query("metric == 'accuracy'")
            values.pivot_table("value", ["task", "method", "epsilon"], ["origin", "tier"])

    Args:
        table: the data of a table, or `PAPER/TABLE`: a table that has been built in `results/tables`.

    Raises:
        DpbenchError: the table has not been built, or its JSON is not of the form that this dpbench writes.
    """
    from pandas import NA, DataFrame  # slow to import

    if isinstance(table, str):
        table = read_table(paths.tables() / f"{table}.json")
    other_columns = {*_BEFORE_AXES, *_AFTER_AXES}
    axes = {axis: f"axis_{axis}" if axis in other_columns else axis for axis in [*table.rows, *table.columns]}
    dtypes = _BEFORE_AXES | dict.fromkeys(axes.values(), "string") | _AFTER_AXES
    rows = []
    for entry in table.entries:
        labels = {axes[axis]: value for axis, value in entry.labels.items()}
        privacy = {f"privacy_{name}": value for name, value in entry.privacy or ()}
        row = dict.fromkeys(dtypes, NA) | {"paper": table.paper, "table": table.table, **dict(entry), **privacy, **labels}
        rows.append(row | {"n": entry.n or NA})  # not known for a published value
    return DataFrame(rows, columns=list(dtypes), dtype=object).astype(dtypes)

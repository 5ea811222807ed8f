"""Verbs that turn records into tables, plots, claims and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from dpbench.cli.app import TIER_NAMES, print_error, verb
from dpbench.errors import DpbenchError
from dpbench.parsing import parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dpbench.records.store import LeftOut

TOPIC = "Results"
TableName = Annotated[str, Argument(metavar="PAPER/TABLE", help="Name of the table.")]
TableFiles = Annotated[list[Path], Option(metavar="JSON ...", help="JSON files of the tables.")]


def exit_code(left_out: Sequence[LeftOut], done: str) -> int:
    """Return the exit code of a verb that had to leave out some records, after a message about them."""
    if left_out:
        count = "1 record was" if len(left_out) == 1 else f"{len(left_out)} records were"
        print_error(f"{count} not {done}, for the reasons given above")
    return 2 if left_out else 0


@verb(TOPIC, "table flashdp/batch_size --out results/tables/flashdp")
def table(
    table: TableName,
    out: Annotated[Path, Option(metavar="DIR", help="Folder for the files.")],
    tier: Annotated[str, Option(metavar="TIER", help=TIER_NAMES)] = "laptop",
    sources: Annotated[str, Option(metavar="JSON", help="Mapping of dataset or model to where it must come from.")] = "",
    seeds: Annotated[
        list[int] | None, Option(metavar="SEED ...", min=0, max=2**32 - 1, help="Seeds in place of the table's.")
    ] = None,
    keep_going: Annotated[
        bool, Option("--keep-going", help="Exit with 0 even if a record of this table's runs had to be left out.")
    ] = False,
) -> int:
    """Write one table as CSV, Markdown, LaTeX, HTML and JSON."""
    from dpbench.report.commands import write_table

    source_of = parse_json(sources, "--sources", "give a JSON mapping of names") if sources else {}
    left_out = write_table(table, tier, out, source_of, seeds)
    return 0 if keep_going else exit_code(left_out, "used in this table")


@verb(TOPIC, "plot flashdp/batch_size throughput --table results/tables/flashdp/batch_size.json --out plot.svg")
def plot(
    table: TableName,
    name: Annotated[str, Argument(metavar="NAME", help="Name of the plot.")],
    data: Annotated[Path, Option("--table", metavar="JSON", help="The table's JSON.")],
    out: Annotated[Path, Option(metavar="FILE.svg", help="File to write.")],
) -> None:
    """Draw one plot of a table."""
    from dpbench.report.commands import write_plot

    write_plot(table, name, data, out)


@verb(TOPIC, "claims --tables results/tables/*/*.json --out results/claims.json")
def claims(tables: TableFiles, out: Annotated[Path, Option(metavar="FILE.json", help="File to write.")]) -> None:
    """Judge the claims of tables."""
    from dpbench.report.commands import write_claims

    write_claims(tables, out)


@verb(TOPIC, "long --out results/long.csv")
def long(
    out: Annotated[Path, Option(metavar="FILE.csv", help="File to write; the parquet file is put beside it.")],
) -> None:
    """Write all records as one long table, as CSV and parquet."""
    from dpbench.report.commands import write_long_table

    write_long_table(out)


@verb(TOPIC, "report --recorded --out reports/recorded.html")
def report(
    out: Annotated[Path, Option(metavar="FILE.html", help="File to write.")],
    tables: TableFiles = [],
    plots: Annotated[list[Path], Option(metavar="SVG ...", help="Plots, .../PAPER/TABLE/PLOT.svg.")] = [],
    claims: Annotated[Path | None, Option(metavar="JSON", help="File written by dpbench claims.")] = None,
    recorded: Annotated[bool, Option("--recorded", help="Use the recorded results alone.")] = False,
) -> None:
    """Write the HTML report."""
    from dpbench.report.commands import write_recorded_report, write_report

    if recorded:
        write_recorded_report(out)
    elif claims is None:
        raise DpbenchError("report needs --claims or --recorded", "judge the claims first (dpbench claims)")
    else:
        write_report(tables, plots, claims, out)

"""The reporting commands of the command line: each reads its inputs, builds and writes."""

from __future__ import annotations

from pathlib import Path

from dpbench.errors import DpbenchError
from dpbench.files import read_text, write_atomic
from dpbench.records.packed import recorded_records
from dpbench.records.store import LeftOut, Stored, local_records
from dpbench.report import claims, page, tables
from dpbench.report.collect import build_table
from dpbench.report.data import LARGEST, read_table
from dpbench.spec.expand import expand
from dpbench.spec.models import TIERS, Plot
from dpbench.spec.tables import all_tables, load_named


def write_table(name: str, tier: str, folder: Path, sources: dict[str, str], seeds: list[int] | None) -> list[LeftOut]:
    """Write `folder`/TABLE.{csv,md,tex,html,json} of one table; invalid records are left out, each with a warning on stderr.

    Returns:
        The records left out that belong to this table's runs on this machine: their values are missing.

    Raises:
        DpbenchError: unknown table or tier.
    """
    from dpbench.execution.study import config_of, resolver

    spec = load_named(name)
    config = config_of({"tier": tier, "sources": sources, "seeds": seeds})
    left_out: list[LeftOut] = []
    local, resolve = list(local_records(left_out=left_out)), resolver(config)
    run_ids = {item.run for item in left_out} & set(expand(spec, tier, resolve, seeds).runs) if left_out else set()
    left_out_here = [item for item in left_out if item.run in run_ids]
    data = build_table(spec, tier, resolve, local, list(recorded_records(left_out)), seeds, left_out)
    tables.write_tables(data, folder)
    write_atomic(folder / f"{spec.table}.json", data.model_dump_json(indent=1) + "\n")
    return left_out_here


def write_plot(name: str, plot: str, data: Path, out: Path) -> None:
    """Draw one plot of a table as SVG.

    Raises:
        DpbenchError: the table has no such plot.
    """
    from dpbench.report import plots  # matplotlib is slow to import

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, plots.draw(read_table(data), _plot(name, plot)))


def _plot(name: str, plot: str) -> Plot:
    known = {p.name: p for p in load_named(name).plots}
    if plot not in known:
        raise DpbenchError(f"{name} has no plot {plot!r}", f"it has {', '.join(known) or 'none'}")
    return known[plot]


def write_claims(paths: list[Path], out: Path) -> None:
    """Judge every claim of the tables at `paths` and write the verdicts."""
    claims.write_claims([j for path in paths for j in claims.judge(read_table(path))], out)


def write_long_table(out: Path) -> None:
    """Write all records, local and recorded, as CSV to `out` and as parquet beside it."""
    from dpbench.report import long  # pandas and pyarrow are slow to import

    long.write_long(long.long_frame([*local_records(), *recorded_records()]), out, out.with_suffix(".parquet"))


def write_report(data: list[Path], svgs: list[Path], judged: Path, out: Path) -> None:
    """Write the page from tables, plots named `.../<paper>/<table>/<plot>.svg`, and claims."""
    svg_texts = {(p.parent.parent.name, p.parent.name, p.stem): read_text(p, LARGEST, "draw the plot first") for p in svgs}
    write_atomic(out, page.render([read_table(p) for p in data], claims.read_claims(judged), svg_texts, "here"))


def write_recorded_report(out: Path) -> None:
    """Write the page from the committed records alone: it is the same on every machine."""
    from dpbench.execution.study import config_of, resolver
    from dpbench.report import plots

    left_out: list[LeftOut] = []
    recorded = list(recorded_records(left_out))
    resolve = resolver(config_of({"tier": "smoke"}))  # answers without looking at this machine's data
    table_data = [
        build_table(spec, _highest(spec.paper, spec.table, recorded), resolve, [], recorded, left_out=left_out)
        for spec in all_tables()
    ]
    svgs = {
        (table.paper, table.table, plot.name): plots.draw(table, plot).decode() for table in table_data for plot in table.plots
    }
    judged = [j for table in table_data for j in claims.judge(table)]
    write_atomic(out, page.render(table_data, judged, svgs, "recorded"))


def _highest(paper: str, table: str, recorded: list[Stored]) -> str:
    """Return the highest tier that a table has records of."""
    tiers = {r.tier for s in recorded for r in s.record.requests if (r.paper, r.table) == (paper, table)}
    return max(tiers, key=TIERS.index, default="laptop")

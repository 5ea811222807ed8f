"""The command line: it parses arguments, calls the work, and turns a DpbenchError into one message and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpbench import __version__, paths, plugins
from dpbench.errors import DpbenchError
from dpbench.execution.processes import end_with
from dpbench.execution.tracking import MODES
from dpbench.files import full_error, is_disk_full
from dpbench.parsing import parse_json
from dpbench.spec.models import TIERS

if TYPE_CHECKING:
    from dpbench.records.store import LeftOut


def _run(args: argparse.Namespace) -> int:
    from dpbench.execution.plan import read_requests
    from dpbench.execution.runner import execute, finished, read_config
    from dpbench.spec.expand import run_id

    if args.owner is not None:
        end_with(args.owner)
    if args.warm and not (args.keep and finished(read_config(args.config), Path(args.out))):
        from dpbench.execution import warm

        words = ["run", args.config, "--out", args.out, "--threads", str(args.threads), "--tracking", args.tracking]
        words += ["--plan", args.plan] if args.plan else []
        code = warm.call(words + ["--quiet"] * args.quiet + ["--keep"] * args.keep)
        if code is not None:
            return code
    config = read_config(args.config)
    requests = read_requests(Path(args.plan), run_id(config)) if args.plan else []
    execute(config, Path(args.out), args.threads, args.tracking, args.quiet, args.keep, requests)
    return 0


def _table(args: argparse.Namespace) -> int:
    from dpbench.report.commands import write_table

    sources = parse_json(args.sources, "--sources", "give a JSON mapping of names") if args.sources else {}
    left_out = write_table(args.table, args.tier, Path(args.out), sources, args.seeds)
    return 0 if args.keep_going else _exit_code(left_out, "used in this table")


def _plot(args: argparse.Namespace) -> None:
    from dpbench.report.commands import write_plot

    write_plot(args.table, args.name, Path(args.data), Path(args.out))


def _claims(args: argparse.Namespace) -> None:
    from dpbench.report.commands import write_claims

    write_claims([Path(p) for p in args.tables], Path(args.out))


def _long(args: argparse.Namespace) -> None:
    from dpbench.report.commands import write_long_table

    write_long_table(Path(args.out))


def _report(args: argparse.Namespace) -> None:
    from dpbench.report.commands import write_recorded_report, write_report

    if args.recorded:
        write_recorded_report(Path(args.out))
    else:
        write_report([Path(p) for p in args.tables], [Path(p) for p in args.plots], Path(args.claims), Path(args.out))


def _record(args: argparse.Namespace) -> int:
    from dpbench.cli import recording

    left_out: list[LeftOut] = []
    if args.merge:
        print(*recording.merge(Path(args.merge), left_out), sep="\n")
        return _exit_code(left_out, "filed")
    if not args.tier:
        raise DpbenchError("record needs --tier or --merge FILE", "name the tier to run, or the archive to file")
    recording.record(args.tier, args.minutes, Path(args.out) if args.out else None, args.tables, args.threads)
    return 0


def _show(args: argparse.Namespace) -> None:
    from dpbench.cli.recording import show

    print(show(args.run), end="")


def _exit_code(left_out: Sequence[LeftOut], done: str) -> int:
    """Return the exit code of a verb that had to leave out some records, after a message about them."""
    if left_out:
        count = "1 record was" if len(left_out) == 1 else f"{len(left_out)} records were"
        print(f"error: {count} not {done}, for the reasons given above", file=sys.stderr)
    return 2 if left_out else 0


def _check(args: argparse.Namespace) -> int:
    from dpbench.cli.checking import check

    return check(args.tier, args.tables)


def _plugins(args: argparse.Namespace) -> int:
    from dpbench.plugins import identity

    if args.lock is not None:
        for key in identity.lock(args.lock, args.why):
            print(f"locked {key}")
        return 0
    findings = identity.stale()
    for kind in plugins.FOLDERS:
        for plugin in plugins.discover(kind).values():
            where = f"{plugin.path}, in no lock: its content is part of the name of its runs" if plugin.outside else ""
            print(f"{plugin.key:32} {identity.identity(plugin)!s:16} {findings.get(plugin.key, where)}".rstrip())
    for key in (key for key in findings if key.startswith("core:")):
        print(f"{key:32} {'':16} {findings[key]}")
    return 1 if findings else 0


def _new(args: argparse.Namespace) -> None:
    from dpbench.cli.authoring import write_template

    path = write_template(args.kind, args.name, Path(args.out))
    print(f"{path}: edit it; `python -m dpbench --plugins {path.parent} plugins` lists it")


def _test_plugin(args: argparse.Namespace) -> int:
    from dpbench.cli.authoring import test_plugin

    return test_plugin(args.name)


def _doctor(_args: argparse.Namespace) -> None:
    from dpbench.cli.doctor import report

    print(report())


def _bench(args: argparse.Namespace) -> int:
    from dpbench.execution.runner import execute
    from dpbench.measure import kernel_bench
    from dpbench.spec.expand import config_of, run_id
    from dpbench.validation import parse

    options = {key: getattr(args, key) for key in ("shapes", "kernels", "batch_size", "tokens", "dtype", "device", "rounds")}
    settings = parse(kernel_bench.Settings, {key: value for key, value in options.items() if value is not None}, "bench kernels")
    config = config_of("kernel_bench", settings.model_dump())
    record = execute(config, Path(args.out) / run_id(config), args.threads, quiet=args.quiet)
    print("\n".join(kernel_bench.lines(record.metrics)))
    return 1 if record.warnings else 0


def _bundle(args: argparse.Namespace) -> None:
    from dpbench.cli.bundle import bundle

    out = Path(args.out)
    for line in bundle(args.tier, out, args.tables, args.have, args.python, args.machine, args.half):
        print(line)


def _simulate(args: argparse.Namespace) -> None:
    from dpbench.measure.simulation import printed

    names = ("size", "tokens", "batch_size", "dtype", "whole", "devices")
    print(printed({name: getattr(args, name) for name in names} | {"methods": args.engines}))


def _schema(args: argparse.Namespace) -> None:
    from dpbench.cli.schemas import write_schemas

    write_schemas(Path(args.out))


_LIMITS = {"threads": (1, 1024), "seed": (0, 2**32 - 1), "process": (1, 2**31 - 1), "count": (1, 2**31 - 1)}


def _integer(kind: str) -> Callable[[str], int]:
    """Return a type of option: an integer within the limits of its kind."""
    low, high = _LIMITS[kind]

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if len(text) <= 20 and low <= int(text) <= high:
                return int(text)
        raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is not an integer from {low} to {high}")

    return parse


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 60 * 24 * 366:
            return float(text)
    raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is not a number of minutes above 0 and within a year")


def parser() -> argparse.ArgumentParser:
    """Return the parser of every verb and its options."""
    top = argparse.ArgumentParser(prog="dpbench", description="Regenerate the published tables of DP deep learning.")
    top.add_argument("--version", action="version", version=f"dpbench {__version__}")
    top.add_argument("--plugins", metavar="DIR", action="append", default=[], help="also look for plug-ins and tables in DIR")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, call, text):  # type: ignore[no-untyped-def]
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(call=call)
        return added

    run = verb("run", _run, "Run one config and write its record into a folder")
    run.add_argument("config", metavar="CONFIG", help="path of a run's config.json, or the JSON itself")
    run.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    run.add_argument("--threads", type=_integer("threads"), metavar="N", default=os.cpu_count() or 1, help="CPU threads to use")
    run.add_argument("--plan", metavar="FILE", help="plan file that names the cells which ask for this run")
    run.add_argument("--tracking", choices=MODES, default="off", help="mirror the run to Weights & Biases")
    run.add_argument("--quiet", action="store_true", help="show no progress bar")
    run.add_argument("--warm", type=int, choices=(0, 1), default=0, help="1: fork from a process that has imported torch")
    run.add_argument("--keep", action="store_true", help="keep an existing finished record instead of running again")
    run.add_argument("--owner", type=_integer("process"), metavar="PID", help="end when this process has ended")

    table = verb("table", _table, "Write one table as CSV, Markdown, LaTeX, HTML and JSON")
    table.add_argument("table", metavar="PAPER/TABLE", help="name of the table")
    table.add_argument("--tier", default="laptop", metavar="TIER", help=", ".join(TIERS))
    table.add_argument("--out", required=True, metavar="DIR", help="folder for the files")
    table.add_argument("--sources", metavar="JSON", help="mapping of dataset or model to where it must come from")
    table.add_argument("--seeds", type=_integer("seed"), nargs="*", default=None, help="seeds in place of the table's")
    table.add_argument(
        "--keep-going", action="store_true", help="exit with 0 even if a record of this table's runs had to be left out"
    )

    plot = verb("plot", _plot, "Draw one plot of a table")
    plot.add_argument("table", metavar="PAPER/TABLE", help="name of the table")
    plot.add_argument("name", metavar="NAME", help="name of the plot")
    plot.add_argument("--table", dest="data", required=True, metavar="JSON", help="the table's JSON")
    plot.add_argument("--out", required=True, metavar="FILE.svg", help="file to write")

    claims = verb("claims", _claims, "Judge the claims of tables")
    claims.add_argument("--tables", nargs="+", required=True, metavar="JSON", help="JSON files of the tables")
    claims.add_argument("--out", required=True, metavar="FILE.json", help="file to write")

    long = verb("long", _long, "Write all records as one long table, as CSV and parquet")
    long.add_argument("--out", required=True, metavar="FILE.csv", help="file to write; the parquet file is put beside it")

    report = verb("report", _report, "Write the HTML report")
    report.add_argument("--tables", nargs="*", default=[], metavar="JSON", help="JSON files of the tables")
    report.add_argument("--plots", nargs="*", default=[], metavar="SVG", help="plots, .../PAPER/TABLE/PLOT.svg")
    report.add_argument("--claims", metavar="JSON", help="file written by dpbench claims")
    report.add_argument("--recorded", action="store_true", help="use the recorded results alone")
    report.add_argument("--out", required=True, metavar="FILE.html", help="file to write")

    record = verb("record", _record, "Run what a tier is missing, without Snakemake, and pack the records")
    record.add_argument("--tier", metavar="TIER", help=", ".join(TIERS))
    record.add_argument("--minutes", type=_minutes, default=60, help="stop after this time (default 60)")
    record.add_argument("--out", metavar="FILE.tar.gz", help="archive to write, rewritten at most once a minute")
    record.add_argument("--tables", nargs="*", default=None, metavar="PAPER/TABLE", help="run these tables only")
    record.add_argument(
        "--threads", type=_integer("threads"), metavar="N", default=os.cpu_count() or 1, help="CPU threads to use"
    )
    record.add_argument("--merge", metavar="FILE.tar.gz", help="check an archive and file it under results/recorded")

    show = verb("show", _show, "Print the record of a run")
    show.add_argument("run", metavar="RUN", help="id of the run, or its first digits")

    check = verb("check", _check, "Dry-run a tier: build models on meta, attach methods, check data and budgets")
    check.add_argument("--tier", required=True, metavar="TIER", help=", ".join(TIERS))
    check.add_argument("--tables", nargs="*", default=None, metavar="PAPER/TABLE", help="check these tables only")

    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    bundle = verb("bundle", _bundle, "Collect wheels, data and weights of a tier for a machine without a network")
    bundle.add_argument("--tier", required=True, metavar="TIER", help=", ".join(TIERS))
    bundle.add_argument("--out", default="bundle", metavar="DIR", help="folder to fill")
    bundle.add_argument("--tables", nargs="*", default=None, metavar="PAPER/TABLE", help="collect for these tables only")
    bundle.add_argument("--have", nargs="*", default=[], metavar="PACKAGE", help="packages that the machine already has")
    bundle.add_argument("--python", default=here, metavar="X.Y", help="version of Python on the machine")
    bundle.add_argument("--machine", default="x86_64", choices=("x86_64", "aarch64"), help="processor of the machine")
    bundle.add_argument("--half", action="store_true", help="store weights in fp16: half the size, but other weights")

    simulate = verb("simulate", _simulate, "Estimate peak memory, max batch size and roofline time for a GPU you do not have")
    simulate.add_argument("size", metavar="SIZE", help="size of a GPT-2 or Llama model: small, large, llama_7b, ...")
    simulate.add_argument("--tokens", type=_integer("count"), default=1024, metavar="T", help="tokens of an example")
    simulate.add_argument(
        "--batch-size", type=_integer("count"), default=8, metavar="B", help="batch size for peak memory and the ratios"
    )
    simulate.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="type of weights and activations")
    simulate.add_argument(
        "--engines",
        nargs="+",
        default=["nonprivate", "ghost", "bookkeeping", "fused"],
        metavar="ENGINE",
        help="engines to compare",
    )
    simulate.add_argument("--devices", nargs="+", default=["a100_80", "rtx3090_24"], metavar="DEVICE", help="devices to compare")
    simulate.add_argument(
        "--whole", action="store_true", help="trace every block instead of extrapolating from two and three blocks"
    )

    bench = verb("bench", _bench, "Check kernels against the fp64 reference, then benchmark them")
    bench.add_argument("what", choices=["kernels"], help="the only thing to benchmark")
    bench.add_argument("--shapes", help="small (default), gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama-7b or llama-13b")
    bench.add_argument("--kernels", nargs="+", help="one or more of torch (default), native and triton")
    bench.add_argument("--batch-size", type=_integer("count"), metavar="B", help="examples of a batch")
    bench.add_argument("--tokens", type=_integer("count"), metavar="T", help="tokens of an example")
    bench.add_argument("--dtype", help="float32 (default), bfloat16 or float16")
    bench.add_argument("--device", help="cpu (default) or cuda")
    bench.add_argument("--rounds", type=_integer("count"), help="repetitions of each measurement")
    bench.add_argument(
        "--out", default=str(paths.root() / "results" / "runs"), metavar="DIR", help="folder in which to make that of the record"
    )
    bench.add_argument("--threads", type=_integer("threads"), metavar="N", default=os.cpu_count() or 1, help="CPU threads to use")
    bench.add_argument("--quiet", action="store_true", help="show no progress bar")

    listed = verb("plugins", _plugins, "List all plug-ins with their part in the name of a run, or lock those that were edited")
    listed.add_argument(
        "--lock", nargs="*", metavar="KIND:NAME", help="write these into plugins.lock; without names, all that changed"
    )
    listed.add_argument(
        "--why", default="", metavar="TEXT", help="the reason why numbers stay, where content changed and the version did not"
    )

    new = verb("new", _new, "Write a commented template of a plug-in or a table")
    new.add_argument("kind", metavar="KIND", help="clipping, dataset, method, table or task")
    new.add_argument("name", metavar="NAME", help="name of the plug-in or table")
    new.add_argument("--out", default=".", metavar="DIR", help="folder to write into")

    tested = verb("test-plugin", _test_plugin, "Run the contract tests on one plug-in")
    tested.add_argument("name", metavar="NAME", help="name of the plug-in")

    verb("doctor", _doctor, "Show what is installed, which data and models are found, and what each tier needs")
    schema = verb("schema", _schema, "Write the JSON schemas of config, tables and records")
    schema.add_argument("--out", default=str(paths.root() / "workflow" / "schemas"), metavar="DIR", help="folder to write into")
    return top


def main(words: list[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 1 if a check fails, 2 for a user's error, 130 after an interruption."""
    args = parser().parse_args(words)
    try:
        for folder in args.plugins:
            plugins.add_folder(folder)
        return int(args.call(args) or 0)
    except DpbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not is_disk_full(error):
            raise
        place = getattr(error, "filename", None) or getattr(args, "out", None) or Path.cwd()
        print(f"error: {full_error(place)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished records are kept", file=sys.stderr)
        return 130

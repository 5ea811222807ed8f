"""Verbs that run jobs, alone or a tier of them, and show their records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from dpbench import paths
from dpbench.cli.app import CORES, TIER_NAMES, Quiet, Tables, Threads, verb
from dpbench.cli.verbs.results import exit_code
from dpbench.errors import DpbenchError
from dpbench.spec.run_config import Tracking

if TYPE_CHECKING:
    from dpbench.records.store import LeftOut

TOPIC = "Runs and records"
Tier = Annotated[str, Option(metavar="TIER", help=TIER_NAMES)]


def _count(metavar: str, text: str) -> Any:
    return Option(metavar=metavar, min=1, max=2**31 - 1, help=text)


@verb(TOPIC, "run results/runs/0123456789ab/config.json --out somewhere")
def run(
    config: Annotated[str, Argument(metavar="CONFIG", help="Path of a run's config.json, or the JSON itself.")],
    out: Annotated[Path, Option(metavar="DIR", help="Folder of the run.")],
    plan: Annotated[Path | None, Option(metavar="FILE", help="Plan file that names the cells which ask for this run.")] = None,
    keep: Annotated[bool, Option("--keep", help="Keep an existing finished record instead of running again.")] = False,
    tracking: Annotated[Tracking, Option(help="Mirror the run to Weights & Biases.", rich_help_panel="How to run")] = "off",
    threads: Threads = CORES,
    quiet: Quiet = False,
    warm: Annotated[
        Literal[0, 1], Option(help="1: fork from a process that has imported torch.", rich_help_panel="How to run")
    ] = 0,
    owner: Annotated[
        int | None,
        Option(metavar="PID", min=1, max=2**31 - 1, help="End when this process has ended.", rich_help_panel="How to run"),
    ] = None,
) -> int:
    """Run one config and write its record into a folder."""
    from dpbench.execution.plan import read_requests
    from dpbench.execution.processes import end_with
    from dpbench.execution.runner import execute, finished, read_config
    from dpbench.spec.expand import run_id

    if owner is not None:
        end_with(owner)
    if warm and not (keep and finished(read_config(config), out)):
        from dpbench.execution.warm import call

        words = ["run", config, "--out", str(out), "--threads", str(threads), "--tracking", tracking]
        words += ["--plan", str(plan)] if plan else []
        code = call(words + ["--quiet"] * quiet + ["--keep"] * keep)
        if code is not None:
            return code
    values = read_config(config)
    requests = read_requests(plan, run_id(values)) if plan else []
    execute(values, out, threads, tracking, quiet, keep, requests)
    return 0


@verb(
    TOPIC,
    "record --tier gpu --minutes 8 --out records.tar.gz",
    "record --tier laptop --tables dpzero/cost flashdp/batch_size",
    "record --merge records.tar.gz",
)
def record(
    tier: Annotated[str, Option(metavar="TIER", help=TIER_NAMES)] = "",
    minutes: Annotated[float, Option(metavar="M", min=0.001, max=60 * 24 * 366, help="Stop after this time.")] = 60,
    tables: Tables = None,
    out: Annotated[Path | None, Option(metavar="FILE.tar.gz", help="Archive to write, rewritten at most once a minute.")] = None,
    merge: Annotated[
        Path | None, Option(metavar="FILE.tar.gz", help="Check an archive and file it under results/recorded.")
    ] = None,
    threads: Threads = CORES,
) -> int:
    """Run what a tier is missing, without Snakemake, and pack the records."""
    from dpbench.cli import recording

    left_out: list[LeftOut] = []
    if merge:
        typer.echo("\n".join(recording.merge(merge, left_out)))
        return exit_code(left_out, "filed")
    if not tier:
        raise DpbenchError("record needs --tier or --merge FILE", "name the tier to run, or the archive to file")
    recording.record(tier, minutes, out, tables, threads)
    return 0


@verb(TOPIC, "show 0123456789ab", "show 0123")
def show(run: Annotated[str, Argument(metavar="RUN", help="Id of the run, or its first digits.")]) -> None:
    """Print the record of a run."""
    from dpbench.cli.recording import show as text_of_record

    typer.echo(text_of_record(run), nl=False)


@verb(TOPIC, "check --tier laptop", "check --tier gpu --tables flashdp/batch_size")
def check(tier: Tier, tables: Tables = None) -> int:
    """Dry-run a tier: build models on meta, attach methods, check data and budgets."""
    from dpbench.cli import checking

    return checking.check(tier, tables)


@verb(TOPIC, "bench kernels --shapes gpt2 --kernels torch native")
def bench(
    what: Annotated[Literal["kernels"], Argument(metavar="kernels", help="The only thing to benchmark.")],
    shapes: Annotated[
        str | None, Option(help="small (default), gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama-7b or llama-13b.")
    ] = None,
    kernels: Annotated[list[str] | None, Option(help="One or more of torch (default), native and triton.")] = None,
    batch_size: Annotated[int | None, _count("B", "Examples of a batch.")] = None,
    tokens: Annotated[int | None, _count("T", "Tokens of an example.")] = None,
    dtype: Annotated[str | None, Option(help="float32 (default), bfloat16 or float16.")] = None,
    device: Annotated[str | None, Option(help="cpu (default) or cuda.")] = None,
    rounds: Annotated[int | None, _count("N", "Repetitions of each measurement.")] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder in which to make that of the record, by default results/runs.")
    ] = None,
    threads: Threads = CORES,
    quiet: Quiet = False,
) -> int:
    """Check kernels against the fp64 reference, then benchmark them."""
    from dpbench.execution.runner import execute
    from dpbench.measure import kernel_bench
    from dpbench.spec.expand import config_of, run_id
    from dpbench.validation import parse

    options = {
        "shapes": shapes,
        "kernels": kernels,
        "batch_size": batch_size,
        "tokens": tokens,
        "dtype": dtype,
        "device": device,
        "rounds": rounds,
    }
    settings = parse(kernel_bench.Settings, {key: value for key, value in options.items() if value is not None}, "bench kernels")
    config = config_of("kernel_bench", settings.model_dump())
    result = execute(config, (out or paths.runs()) / run_id(config), threads, quiet=quiet)
    typer.echo("\n".join(kernel_bench.lines(result.metrics)))
    return 1 if result.warnings else 0


@verb(TOPIC, "simulate large --devices a100_80 rtx3090_24", "simulate llama_7b --tokens 2048 --engines ghost fused")
def simulate(
    size: Annotated[str, Argument(metavar="SIZE", help="Size of a GPT-2 or Llama model: small, large, llama_7b, ...")],
    tokens: Annotated[int, _count("T", "Tokens of an example.")] = 1024,
    batch_size: Annotated[int, _count("B", "Batch size for peak memory and the ratios.")] = 8,
    dtype: Annotated[Literal["float32", "bfloat16"], Option(help="Type of weights and activations.")] = "bfloat16",
    engines: Annotated[list[str], Option(metavar="ENGINE ...", help="Engines to compare.")] = [
        "nonprivate",
        "ghost",
        "bookkeeping",
        "fused",
    ],
    devices: Annotated[list[str], Option(metavar="DEVICE ...", help="Devices to compare.")] = ["a100_80", "rtx3090_24"],
    whole: Annotated[
        bool, Option("--whole", help="Trace every block instead of extrapolating from two and three blocks.")
    ] = False,
) -> None:
    """Estimate peak memory, max batch size and roofline time for a GPU you do not have."""
    from dpbench.measure.simulation import printed

    options = {"size": size, "tokens": tokens, "batch_size": batch_size, "dtype": dtype, "whole": whole}
    typer.echo(printed(options | {"methods": engines, "devices": devices}))

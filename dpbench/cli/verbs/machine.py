"""Verbs about a machine: what it has, and what it needs where there is no network."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from dpbench.cli.app import TIER_NAMES, Tables, verb

TOPIC = "Machine"
PYTHON = ".".join(platform.python_version_tuple()[:2])


@verb(TOPIC, "doctor")
def doctor() -> None:
    """Show what is installed, which data and models are found, and what each tier needs."""
    from dpbench.cli.doctor import report

    typer.echo(report())


@verb(TOPIC, "bundle --tier gpu --have torch transformers --out bundle")
def bundle(
    tier: Annotated[str, Option(metavar="TIER", help=TIER_NAMES)],
    out: Annotated[Path, Option(metavar="DIR", help="Folder to fill.")] = Path("bundle"),
    tables: Tables = None,
    have: Annotated[list[str], Option(metavar="PACKAGE ...", help="Packages that the machine already has.")] = [],
    python: Annotated[str, Option(metavar="X.Y", help="Version of Python on the machine.")] = PYTHON,
    machine: Annotated[Literal["x86_64", "aarch64"], Option(help="Processor of the machine.")] = "x86_64",
    half: Annotated[bool, Option("--half", help="Store weights in fp16: half the size, but other weights.")] = False,
) -> None:
    """Collect wheels, data and weights of a tier for a machine without a network."""
    from dpbench.cli.bundle import bundle as fill

    for line in fill(tier, out, tables, have, python, machine, half):
        typer.echo(line)

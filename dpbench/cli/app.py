"""The typer application that every verb registers with, the options that several verbs share, and how errors are printed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dpbench import __version__, plugins
from dpbench.errors import DpbenchError
from dpbench.files import full_error, is_disk_full
from dpbench.spec.models import TIERS

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TIER_NAMES = ", ".join(TIERS)
CORES = os.cpu_count() or 1
_OPTION = re.compile("-[-A-Za-z]")  # `-1` is a value
Threads = Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="CPU threads to use.", rich_help_panel="How to run")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bar.", rich_help_panel="How to run")]
Tables = Annotated[list[str] | None, typer.Option(metavar="PAPER/TABLE ...", help="Use these tables only.")]


class Verb(TyperCommand):
    """One verb. An option of several values takes all words up to the next option: `--tables A B`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Rewrite `--tables A B` as `--tables A --tables B`, which typer understands.

        Raises:
            DpbenchError: an option without a value that has no empty list as its default, and no metavar in brackets.
        """
        lists = {name: option for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        words: list[str] = []
        current = ""
        for position, word in enumerate(args):
            following = args[position + 1 : position + 2]
            if _OPTION.match(word):
                current = word if word in lists else ""
                if not current:
                    words.append(word)
                elif following and not _OPTION.match(following[0]):
                    continue
                elif (lists[word].metavar or "").startswith("["):
                    words += [word, ""]
                elif lists[word].default != []:
                    raise DpbenchError(f"{word} has no value", f"{ctx.command_path} --help")
            else:
                words += [current, word] if current else [word]
        return super().parse_args(ctx, words)

    def invoke(self, ctx: typer.Context) -> int:  # type: ignore[override]
        """Run the verb and return its exit code."""
        try:
            return int(super().invoke(ctx) or 0)
        except KeyboardInterrupt:
            typer.echo("interrupted; finished records are kept", err=True)
            return 130
        except Exception as error:
            if isinstance(error, DpbenchError) or not is_disk_full(error):
                raise
            raise full_error(getattr(error, "filename", None) or ctx.params.get("out") or Path.cwd()) from error


def verb(topic: str, *examples: str, name: str | None = None) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register a function as a verb called `name`, by default as the function is.

    Args:
        topic: heading of the verb in `dpbench --help`.
        examples: command lines without `dpbench`, shown in the verb's help.
    """
    lines = "\n\n".join(f"  dpbench {example}" for example in examples)
    return app.command(name, cls=Verb, rich_help_panel=topic, epilog=f"[bold]Examples[/bold]\n\n{lines}" if lines else None)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dpbench {__version__}")
        raise typer.Exit


@app.callback()
def _before_the_verb(
    folders: Annotated[list[str], typer.Option("--plugins", metavar="DIR", help="Also look for plug-ins and tables here.")] = [],
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Regenerate the published tables of DP deep learning."""
    for folder in folders:
        plugins.add_folder(folder)


def print_error(message: str) -> None:
    """Print a message on stderr, in colour on a terminal."""
    typer.echo(typer.style("error: ", fg="red", bold=True) + message, err=True)


def print_rows(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: with rules on a terminal, else as plain text.

    Args:
        columns: name of each column and its width in the plain text.
    """
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo(" ".join(f"{value!s:{width}}" for (_, width), value in zip(columns, row, strict=True)).rstrip())
        return
    from rich.console import Console  # imported here as it takes longer than most of what is printed without it
    from rich.table import Table
    from rich.text import Text

    table = Table(*(name for name, _ in columns))
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    Console().print(table)

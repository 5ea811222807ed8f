"""The command line: `main` calls a verb and turns a DpbenchError into one message and exit code 2.

Each verb is a decorated function in a module of `dpbench.cli.verbs`, where it is found without being listed anywhere else. These
modules import what a verb needs only when it is called, so that `dpbench --help` takes no time.
"""

from __future__ import annotations

import importlib
import pkgutil

import typer
from pydantic import ValidationError
from typer.exceptions import TyperException

from dpbench.cli import verbs
from dpbench.cli.app import app, print_error
from dpbench.errors import DpbenchError
from dpbench.validation import short

for _module in pkgutil.iter_modules(verbs.__path__, f"{verbs.__name__}."):
    importlib.import_module(_module.name)

command = typer.main.get_command(app)


def main(words: list[str] | None = None) -> int:
    """Run one verb and return its exit code: 0, 1 if a check fails, 2 for a user's error, 130 after an interruption."""
    try:
        return int(command.main(words, prog_name="dpbench", standalone_mode=False) or 0)
    except DpbenchError as error:
        print_error(str(error))
    except TyperException as error:
        print_error(_usage_message(error))
    return 2


def _usage_message(error: TyperException) -> str:
    """Return typer's message, with the value that it does not understand and how to get help."""
    faults = error.__cause__.errors() if isinstance(error.__cause__, ValidationError) else []
    value = f" (got {short(repr(faults[0]['input']))})" if faults else ""
    context = getattr(error, "ctx", None)
    return f"{error.format_message()}{value}\n  hint: {context.command_path if context else 'dpbench'} --help"

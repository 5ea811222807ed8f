"""Execute one run from its config to its record: `python -m dpbench run CONFIG --out DIR`."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dpbench import plugins
from dpbench.data import remarks
from dpbench.errors import DpbenchError, unknown
from dpbench.execution import environment
from dpbench.execution.contract import Context, Outcome
from dpbench.execution.locking import alone
from dpbench.execution.tracking import StepLog
from dpbench.files import full_error, is_disk_full, read_json, sha256_file, write_atomic, write_error
from dpbench.parsing import parse_json
from dpbench.plugins.identity import identity
from dpbench.records.schema import Record, Request
from dpbench.records.store import NAME, read_record, write_record
from dpbench.spec.expand import check_names, run_id
from dpbench.spec.run_config import RunConfig, Tracking
from dpbench.spec.sources import Source
from dpbench.validation import parse

CONFIG, STEPS, LOCK = "config.json", "steps.jsonl", ".lock"
NEXT = ".next"
"""Folder inside that of a run that is repeated: the finished files are not touched until the new record is written here."""


def read_config(text_or_path: str) -> dict[str, Any]:
    """Read a run's config from JSON text or from a JSON file.

    Raises:
        DpbenchError: no such file, not JSON, invalid keys or values, unknown plug-ins or settings, a version that is not the
            current one, or sources and parents that are not those that the settings ask for.
    """
    hint = "give a run's config.json"
    if text_or_path.lstrip().startswith("{"):
        where, config = "config", parse_json(text_or_path, "config", hint)
    else:
        where, config = text_or_path, read_json(Path(text_or_path), hint=hint)
    parse(RunConfig, config, where, hint, strict=True)
    for name, version in config["versions"].items():
        kind, _, plugin = name.partition(":")
        if kind not in plugins.FOLDERS:
            raise unknown("kind of plug-in", kind, plugins.FOLDERS, f"{where}: versions")
        current = identity(plugins.get(kind, plugin, where))
        if current != version:
            raise DpbenchError(
                f"{where}: made for {name} version {version}, this dpbench has {current}", "name the runs again (snakemake)"
            )
    plugins.get("job", config["job"], where)
    if (job_key := f"job:{config['job']}") not in config["versions"]:
        raise DpbenchError(f"{where}: versions: {job_key} is missing", hint)
    check_names(config, where)
    return config


def execute(
    config: dict[str, Any],
    out: Path,
    threads: int = 1,
    tracking: Tracking = "off",
    quiet: bool = False,
    keep: bool = False,
    requests: Sequence[Request] = (),
) -> Record:
    """Run `config` and write its files into `out`: steps.jsonl, config.json, artefacts, and last, atomically, record.json.

    Two processes never run the same folder at once: the second one waits, and then returns the record of the first, if there is
    one. A finished record, with its steps and artefacts, is replaced only when the new one is finished.

    Args:
        keep: return an existing record of this config, whoever wrote it, instead of running again.
        requests: the cells that ask for the run.

    Raises:
        DpbenchError: an error that a user can correct; no record is written then.
    """
    name = run_id(config)
    module = plugins.get("job", config["job"]).load()
    settings = parse(module.Settings, config["settings"], f"run {name}")
    sources = _sources(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    with alone(out / LOCK, f"run {name}") as waited:
        _settle(out)
        if (waited or keep) and (existing := finished(config, out)) is not None:
            return existing
        parents = {role: out.parent / parent for role, parent in config["parents"].items()}
        for parent in parents.values():
            settle(parent)
        is_repeated = (out / NAME).exists()
        folder = out / NEXT if is_repeated else out
        try:
            folder.mkdir(exist_ok=True)
            write_atomic(folder / CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
            steps = StepLog(folder / STEPS, tracking, name, config)
            context = Context(folder, config["seed"], sources, steps, threads, parents, config["parents"])
            record = _run(partial(module.run, settings), config, context, quiet, requests)
        except Exception as error:
            if is_disk_full(error) and not isinstance(error, DpbenchError):
                raise full_error(out) from error
            raise
        finally:
            if is_repeated:
                _settle(out)
        return record


def finished(config: dict[str, Any], out: Path) -> Record | None:
    """Return the record in `out` if it is valid, of this config, and has all its artefacts beside it."""
    try:
        record = read_record(out / NAME, run_id(config))
    except DpbenchError:
        return None
    return record if all((out / file).is_file() for file in record.artefacts) else None


def settle(out: Path) -> None:
    """Finish the move of a repeated run that a killed process began, after waiting for any process that works there."""
    if (out / NEXT / NAME).exists():
        with alone(out / LOCK, f"run {out.name}"):
            _settle(out)


def _settle(out: Path) -> None:
    """Move a repeated run into its place if it is finished, and delete its folder `NEXT`.

    The record is moved last: if the process is killed on the way, the next process can continue.
    """
    new = out / NEXT
    if not new.is_dir():
        return
    try:
        if (new / NAME).exists():
            files = [path for path in new.rglob("*") if not path.is_dir()]
            for path in sorted(files, key=lambda path: path == new / NAME):
                target = out / path.relative_to(new)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        shutil.rmtree(new)
    except OSError as error:
        raise write_error(out, error) from error


def _run(
    job: Callable[[Context], Outcome], config: dict[str, Any], context: Context, quiet: bool, requests: Sequence[Request]
) -> Record:
    """Call the job and write its record into the folder of the context."""
    import torch

    name, steps = run_id(config), context.steps
    torch.set_num_threads(context.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(context.seed)
    try:
        inherited = {key: source for role in context.parents for key, source in context.parent(role).all_sources.items()}
        started = time.perf_counter()
        with _progress(f"{config['job']} {name}", quiet) as context.report, remarks.collected() as data_remarks:
            outcome = job(context)
    except BaseException:
        with suppress(DpbenchError):  # the error that ended the run is more useful
            steps.close()
        raise
    steps.close()
    seconds = time.perf_counter() - started
    values = {
        "run": name,
        "config": config,
        "requests": list(requests),
        "sources": context.sources,
        "inherited_sources": {key: source for key, source in inherited.items() if key not in context.sources},
        "metrics": outcome.metrics,
        "mechanism": outcome.mechanism,
        "privacy": outcome.privacy,
        "environment": environment.describe(outcome.device, context.threads),
        "facts": outcome.facts,
        "artefacts": {file: sha256_file(context.out / file) for file in outcome.artefacts},
        "warnings": [*outcome.warnings, *data_remarks, *steps.warnings],
        "seconds": round(seconds, 3),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    record = parse(Record, values, str(context.out / NAME), "report this: it is an error in the job")
    write_record(record, context.out)
    return record


def _sources(config: dict[str, Any]) -> dict[str, Source]:
    """Return the current source of each dataset and model of a config.

    Raises:
        DpbenchError: a source has changed since the run was named.
    """
    from dpbench.data import registry as datasets
    from dpbench.models import registry as models

    registries = {"dataset": datasets, "model": models}
    sources = {}
    for key, expected in config["sources"].items():
        registry_name, _, name = key.partition(":")
        registry = registries[registry_name]
        reason = changed = ""
        # files of the same content may be anywhere
        for kind in [expected["kind"]] if "kind" in expected else registry.KINDS:
            try:
                source = registry.resolve(name, kind)
            except DpbenchError as error:
                reason = reason or f" ({error.what})"
                continue
            if source.identity == expected:
                sources[key] = source
                break
            changed = changed or f" ({kind}: {_difference(source.identity, expected)})"
        if key not in sources:
            hint = "name the runs again (start snakemake again)"
            raise DpbenchError(f"{key} is no longer what this run was named after{changed or reason}", hint)
    return sources


def _difference(now: dict[str, Any], then: dict[str, Any]) -> str:
    """Return what has changed in a source since the run was named."""
    if "files" in now and "files" in then:
        names = sorted(n for n in {*now["files"], *then["files"]} if now["files"].get(n) != then["files"].get(n))
        return f"{', '.join(names[:3])} changed since"
    return "it is other files or another revision now"


@contextmanager
def _progress(title: str, quiet: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(desc=title, disable=quiet or None, file=sys.stderr, mininterval=2, dynamic_ncols=True, leave=False) as bar:

        def report(done: int, total: int, text: str) -> None:
            bar.total = total
            bar.n = done
            bar.set_postfix_str(text, refresh=False)
            bar.update(0)

        yield report

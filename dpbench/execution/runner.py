"""One run from its config to its record: `python -m dpbench run CONFIG --out DIR`."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
from dpbench.spec.run_config import RunConfig
from dpbench.spec.sources import Source
from dpbench.validation import parse

CONFIG, STEPS, LOCK = "config.json", "steps.jsonl", ".lock"
NEXT = ".next"
"""Folder of a run that is made again: what is finished stays as it is until the new record is written there."""


def read_config(text_or_path: str) -> dict[str, Any]:
    """A run's config, given as JSON or as the path of a JSON file.

    Raises:
        DpbenchError: no such file, not JSON, keys or values of another kind, unknown plug-ins or settings, a version that is no
            longer the present one, or sources and parents that are not those the settings ask for.
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
        present = identity(plugins.get(kind, plugin, where))
        if present != version:
            raise DpbenchError(
                f"{where}: made for {name} version {version}, this dpbench has {present}", "name the runs again (snakemake)"
            )
    plugins.get("job", config["job"], where)
    if (own := f"job:{config['job']}") not in config["versions"]:
        raise DpbenchError(f"{where}: versions: {own} is missing", hint)
    check_names(config, where)
    return config


def execute(
    config: dict[str, Any],
    out: Path,
    threads: int = 1,
    tracking: str = "off",
    quiet: bool = False,
    keep: bool = False,
    requests: Sequence[Request] = (),
) -> Record:
    """Run `config` into `out`: record.json (last, whole), steps.jsonl, config.json, artefacts.

    Two processes never run the same folder at once: the second waits, and takes the record if there is one by then. A finished
    record is replaced by a finished one: until then it stays, with its steps and artefacts.

    Args:
        keep: take the record of this config that is there, whoever made it, instead of making it again.
        requests: the cells that ask for the run.

    Raises:
        DpbenchError: anything a user can put right; no record is written then.
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
        if (waited or keep) and (there := finished(config, out)) is not None:
            return there
        parents = {role: out.parent / parent for role, parent in config["parents"].items()}
        for parent in parents.values():
            settle(parent)
        again = (out / NAME).exists()
        work = out / NEXT if again else out
        try:
            work.mkdir(exist_ok=True)
            write_atomic(work / CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
            record = _run(name, module, settings, config, sources, parents, work, threads, tracking, quiet, requests)
        except Exception as error:
            if is_disk_full(error) and not isinstance(error, DpbenchError):
                raise full_error(out) from error
            raise
        finally:
            if again:
                _settle(out)
        return record


def finished(config: dict[str, Any], out: Path) -> Record | None:
    """The record in `out` if it is whole, of this config, and has its artefacts beside it."""
    try:
        record = read_record(out / NAME, run_id(config))
    except DpbenchError:
        return None
    return record if all((out / file).is_file() for file in record.artefacts) else None


def settle(out: Path) -> None:
    """Finish what a process that was killed had begun in a run's folder, unless another process is at work there."""
    if (out / NEXT / NAME).exists():
        with alone(out / LOCK, f"run {out.name}"):
            _settle(out)


def _settle(out: Path) -> None:
    """Move a run that was made again into its place, if it is finished, and clear up after it. Its record comes last and
    leaves `NEXT` last: whoever is killed on the way leaves enough for the next one to go on."""
    new = out / NEXT
    if not new.is_dir():
        return
    try:
        if (new / NAME).exists():
            files = [path for path in new.rglob("*") if not path.is_dir()]
            for path in sorted(files, key=lambda path: path == new / NAME):
                place = out / path.relative_to(new)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
        shutil.rmtree(new)
    except OSError as error:
        raise write_error(out, error) from error


def _run(
    name: str,
    module: Any,
    settings: Any,
    config: dict[str, Any],
    sources: dict[str, Source],
    parents: dict[str, Path],
    work: Path,
    threads: int,
    tracking: str,
    quiet: bool,
    requests: Sequence[Request],
) -> Record:
    import torch

    inherited: dict[str, Source] = {}
    for role, folder in parents.items():
        inherited |= read_record(folder / NAME, config["parents"][role]).all_sources
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(config["seed"])
    steps = StepLog(work / STEPS, tracking, name, config)
    begun = time.perf_counter()
    try:
        with _progress(f"{config['job']} {name}", quiet) as report:
            context = Context(work, config["seed"], sources, steps, threads, parents, config["parents"], report)
            with remarks.collected() as odd:
                outcome: Outcome = module.run(settings, context)
    except BaseException:
        with suppress(DpbenchError):  # what ended the run says more
            steps.close()
        raise
    steps.close()
    seconds = time.perf_counter() - begun
    values = {
        "run": name,
        "config": config,
        "requests": list(requests),
        "sources": sources,
        "inherited_sources": {name: source for name, source in inherited.items() if name not in sources},
        "metrics": outcome.metrics,
        "mechanism": outcome.mechanism,
        "privacy": outcome.privacy,
        "environment": environment.describe(outcome.device, threads),
        "facts": outcome.facts,
        "artefacts": {file: sha256_file(work / file) for file in outcome.artefacts},
        "warnings": [*outcome.warnings, *odd, *steps.warnings],
        "seconds": round(seconds, 3),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    record = parse(Record, values, str(work / NAME), "report this: it is a fault of the job")
    write_record(record, work)
    return record


def _sources(config: dict[str, Any]) -> dict[str, Source]:
    """Where each dataset and model of a config lies now.

    Raises:
        DpbenchError: it is no longer what the run was named after.
    """
    from dpbench.data import registry as datasets
    from dpbench.models import registry as models

    registries = {"dataset": datasets, "model": models}
    found = {}
    for key, known in config["sources"].items():
        what, _, name = key.partition(":")
        registry = registries[what]
        reason = changed = ""
        for kind in [known["kind"]] if "kind" in known else registry.KINDS:  # files of the same content may lie anywhere
            try:
                source = registry.resolve(name, kind)
            except DpbenchError as error:
                reason = reason or f" ({error.what})"
                continue
            if source.identity == known:
                found[key] = source
                break
            changed = changed or f" ({kind}: {_difference(source.identity, known)})"
        if key not in found:
            again = "name the runs again (start snakemake anew)"
            raise DpbenchError(f"{key} is no longer what this run was named after{changed or reason}", again)
    return found


def _difference(now: dict[str, Any], then: dict[str, Any]) -> str:
    """What a source is now that it was not when the run was named."""
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

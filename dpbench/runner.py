"""One run from its config to its record: `python -m dpbench run CONFIG --out DIR`."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpbench import accounting, environment, plugins
from dpbench.composition import Composition
from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_json, sha256_file, write_atomic, write_error
from dpbench.jobs.contract import Context, Outcome
from dpbench.mechanism import Mechanism
from dpbench.parsing import parse_json
from dpbench.records.schema import Privacy, Record, Request
from dpbench.records.store import NAME, read_record, write_record
from dpbench.spec.expand import asks_for, check_names, run_id
from dpbench.spec.models import TIERS
from dpbench.spec.run_config import RunConfig
from dpbench.spec.sources import Source
from dpbench.spec.tables import all_tables
from dpbench.tracking import StepLog
from dpbench.validation import parse

CONFIG, STEPS, LOCK = "config.json", "steps.jsonl", ".lock"


def read_config(text_or_path: str) -> dict[str, Any]:
    """A run's config, given as JSON or as the path of a JSON file.

    Raises:
        DpbenchError: no such file, not JSON, keys or values of another kind, unknown plug-ins or settings, a version that is no
            longer the present one, or sources and parents that are not those the settings ask for.
    """
    way_out = "give a run's config.json"
    if text_or_path.lstrip().startswith("{"):
        where, config = "config", parse_json(text_or_path, "config", way_out)
    else:
        where, config = text_or_path, read_json(Path(text_or_path), way_out=way_out)
    parse(RunConfig, config, where, way_out, strict=True)
    for name, version in config["versions"].items():
        kind, _, plugin = name.partition(":")
        if kind not in plugins.FOLDERS:
            raise unknown("kind of plug-in", kind, plugins.FOLDERS, f"{where}: versions")
        present = plugins.get(kind, plugin, where).version
        if present != version:
            raise DpbenchError(
                f"{where}: made for {name} version {version}, this dpbench has {present}", "name the runs again (snakemake)"
            )
    plugins.get("job", config["job"], where)
    if (own := f"job:{config['job']}") not in config["versions"]:
        raise DpbenchError(f"{where}: versions: {own} is missing", way_out)
    check_names(config, where)
    return config


def execute(config: dict[str, Any], out: Path, threads: int = 1, tracking: str = "off", quiet: bool = False) -> Record:
    """Run `config` into `out`: record.json (last, whole), steps.jsonl, config.json, artefacts.

    Two processes never run the same folder at once: the second waits, and takes the record if there is one by then.

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
    with _alone(out) as waited:
        if waited and (out / NAME).exists():
            return read_record(out / NAME, name)
        (out / NAME).unlink(missing_ok=True)
        write_atomic(out / CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
        return _run(name, module, settings, config, sources, out, threads, tracking, quiet)


def _run(
    name: str,
    module: Any,
    settings: Any,
    config: dict[str, Any],
    sources: dict[str, Source],
    out: Path,
    threads: int,
    tracking: str,
    quiet: bool,
) -> Record:
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(config["seed"])
    steps = StepLog(out / STEPS, tracking, name, config)
    parents = {role: out.parent / parent for role, parent in config["parents"].items()}
    begun = time.perf_counter()
    try:
        with _progress(f"{config['job']} {name}", quiet) as report:
            context = Context(out, config["seed"], sources, steps, threads, parents, config["parents"], report)
            outcome: Outcome = module.run(settings, context)
    finally:
        steps.close()
    seconds = time.perf_counter() - begun
    values = {
        "run": name,
        "config": config,
        "requests": requests(config, sources),
        "sources": sources,
        "metrics": outcome.metrics,
        "mechanism": outcome.mechanism,
        "privacy": outcome.privacy,
        "environment": environment.describe(outcome.device, threads),
        "facts": outcome.facts,
        "artefacts": {file: sha256_file(out / file) for file in outcome.artefacts},
        "warnings": [*outcome.warnings, *steps.warnings],
        "seconds": round(seconds, 3),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    record = parse(Record, values, str(out / NAME), "report this: it is a fault of the job")
    write_record(record, out)
    return record


def privacy_of(mechanism: Mechanism | Composition) -> Privacy | None:
    """Both accountants' epsilon of a whole run; None for a non-private one."""
    if not mechanism.private:
        return None
    note = ""
    try:
        by_rdp = mechanism.epsilon(accountant="rdp")
    except accounting.Unsupported as error:
        by_rdp, note = None, f"unsupported: {error.what}"
    return Privacy(
        epsilon=mechanism.epsilon(),
        epsilon_rdp=by_rdp,
        rdp_note=note,
        target_epsilon=mechanism.target_epsilon,
        delta=mechanism.delta,
        noise_multiplier=mechanism.noise_multiplier,
        relation=mechanism.relation,
        validity="nominal" if mechanism.reasons else "valid",
        reasons=mechanism.reasons,
        accountants=accounting.versions(),
    )


def requests(config: dict[str, Any], sources: dict[str, Source]) -> list[Request]:
    """The tables and tiers that ask for the run of `config` when data and models come from `sources`."""

    other = Source(kind="scratch", revision="of another run")  # gives such runs another name, which is all that is asked

    def resolve(kind: str, wanted: str) -> Source:
        return sources.get(f"{kind}:{wanted}", other)

    return [
        Request(paper=spec.paper, table=spec.table, tier=tier)
        for spec in all_tables()
        for tier in TIERS
        if asks_for(spec, tier, config, resolve)
    ]


def _sources(config: dict[str, Any]) -> dict[str, Source]:
    """Where each dataset and model of a config lies now.

    Raises:
        DpbenchError: it is no longer what the run was named after.
    """
    from dpbench.data import registry as datasets
    from dpbench.models import registry as models

    registries = {"dataset": datasets, "model": models}
    found = {}
    for key, identity in config["sources"].items():
        what, _, name = key.partition(":")
        registry = registries[what]
        reason = changed = ""
        for kind in [identity["kind"]] if "kind" in identity else registry.KINDS:  # files of the same content may lie anywhere
            try:
                source = registry.resolve(name, kind)
            except DpbenchError as error:
                reason = reason or f" ({error.what})"
                continue
            if source.identity == identity:
                found[key] = source
                break
            changed = changed or f" ({kind}: {_difference(source.identity, identity)})"
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
def _alone(out: Path) -> Iterator[bool]:
    """Hold the folder's lock; yields whether another process had it before. It goes when the process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
        waited = False
    except Timeout:
        lock.acquire()
        waited = True
    except OSError as error:
        raise write_error(out / LOCK, error) from error
    try:
        yield waited
    finally:
        lock.release()


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

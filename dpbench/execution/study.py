"""Expand a config into tables and runs, for the workflow. Imports no torch, so that `snakemake -n` stays fast."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from dpbench import paths, plugins
from dpbench.data import registry as datasets
from dpbench.errors import unknown
from dpbench.models import registry as models
from dpbench.spec.config import Config, config_from
from dpbench.spec.expand import Plan, Resolve, Run, expand
from dpbench.spec.models import Resources
from dpbench.spec.sources import Source

LISTS = ("papers", "tables", "seeds")


@dataclass
class Study:
    """The tables and runs that a config asks for.

    plans: `paper/table` -> its cells and runs; runs: id -> run, for all tables, parents before their children.
    """

    config: Config
    plans: dict[str, Plan] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)


def config_of(values: dict[str, Any]) -> Config:
    """Validate a config from a command line, on which `papers=dpzero`, `papers=dpzero,flashdp` and `seeds=3` are lists.

    Raises:
        DpbenchError: unknown keys or values.
    """
    options = {key: value for key, value in values.items() if value is not None}
    for key in LISTS:
        value = options.get(key)
        if isinstance(value, str) and value != "all":
            options[key] = [part.strip() for part in value.split(",") if part.strip()]
        elif isinstance(value, int):
            options[key] = [value]
    config = config_from(options, "config")
    folders = [config.plugins] if isinstance(config.plugins, str) else config.plugins or []
    for folder in folders:
        plugins.add_folder(paths.root() / Path(folder).expanduser())
    return config


def resolver(config: Config) -> Resolve:
    """Return the function that resolves the source of each dataset or model, once per name, according to `config.sources`.

    This sets DPBENCH_DATA and DPBENCH_MODELS for this process and its children if the config names a folder and the
    environment does not.

    Raises:
        DpbenchError: `sources` names something that is neither a dataset nor a model.
    """
    for variable, folder in (("DPBENCH_DATA", config.data_folder), ("DPBENCH_MODELS", config.model_folder)):
        if folder and not os.environ.get(variable):
            os.environ[variable] = str(paths.root() / Path(folder).expanduser())
    known = [*plugins.discover("dataset"), *plugins.discover("model")]
    for name in config.sources:
        if name not in known:
            raise unknown("dataset or model", name, known, "config: sources")

    registries = {"dataset": datasets.resolve, "model": models.resolve}

    @cache
    def resolve(kind: str, name: str) -> Source:
        # The smoke tier is the same everywhere; a dataset without a stand-in, such as a user's own, comes from where it is.
        generated = config.tier == "smoke" and kind == "dataset" and plugins.get(kind, name).extra.get("embedded")
        return registries[kind](name, config.sources.get(name, "embedded" if generated else "auto"))

    return resolve


def study(config: Config) -> Study:
    """Expand every chosen table at the config's tier; a run that several tables need is in the study once.

    Raises:
        DpbenchError: an unknown tier, paper, table, setting, plug-in, dataset or model.
    """
    selected, resolve = Study(config), resolver(config)
    for spec in config.chosen():
        plan = expand(spec, config.tier, resolve, config.seeds)
        selected.plans[f"{spec.paper}/{spec.table}"] = plan
        for name, run in plan.runs.items():
            known = selected.runs.get(name, run)
            selected.runs[name] = replace(known, resources=_largest(known.resources, run.resources))
    return selected


def study_at(tier: str, tables: list[str] | None, where: str) -> Study:
    """Return the study of a tier, of all tables or of `tables`.

    Args:
        where: the start of the message about a wrong name.

    Raises:
        DpbenchError: an unknown tier or table, or an invalid YAML file.
    """
    return study(config_from({"tier": tier} | ({} if tables is None else {"tables": tables}), where))


def _largest(one: Resources, other: Resources) -> Resources:
    """Return resources that are enough for both: two tables may plan a shared run differently."""
    threads = (one.threads, other.threads)
    return Resources(
        threads="all" if "all" in threads else max(int(t) for t in threads),
        mem_mb=max(one.mem_mb, other.mem_mb),
        minutes=max(one.minutes, other.minutes),
        gpu=max(one.gpu, other.gpu),
    )

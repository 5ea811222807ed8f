"""Expand a table at a tier into its cells and the runs that fill them.

The name of a run is a hash of everything that decides its numbers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dpbench import paths, plugins
from dpbench.errors import DpbenchError, unknown
from dpbench.files import canonical_json
from dpbench.plugins.identity import identity
from dpbench.spec.includes import merge
from dpbench.spec.models import TIERS, WHY, AxisSpec, Block, Override, Resources, TableSpec, label
from dpbench.spec.sources import Source
from dpbench.spec.tables import path_of
from dpbench.validation import parse

Resolve = Callable[[str, str], Source]
"""A function of (`dataset` or `model`, name) that returns where it comes from."""


@dataclass(frozen=True)
class Uses:
    """What a job's settings use: plug-ins, datasets and models whose versions and sources are part of a run's name."""

    plugins: tuple[tuple[str, str], ...] = ()
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run of a job. id: hash of `config`; parents: role -> the run whose artefacts it reads.

    key: hash of everything that decides its numbers except the seed and the sources of data and models; it includes the keys of
    the parents.
    """

    id: str
    key: str
    config: dict[str, Any]
    sources: dict[str, Source]
    resources: Resources
    parents: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One row and column of a table, for one seed.

    labels: axis -> value; select: the labels that pick this cell's metrics inside its run's record.
    """

    labels: dict[str, str]
    select: dict[str, str]
    seed: int
    run: str


@dataclass
class Plan:
    """The cells and runs of a table at a tier.

    runs: the runs of its cells and all their parents, parents first; skipped: labels of cells that stay empty, with the reason.
    """

    spec: TableSpec
    tier: str
    cells: list[Cell] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    skipped: list[tuple[dict[str, str], str]] = field(default_factory=list)


def run_id(config: dict[str, Any]) -> str:
    """Return the name of a run: twelve hex digits of the sha256 of its canonical config."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:12]


def axis_values(name: str, axis: AxisSpec, table_axis: AxisSpec | None = None) -> dict[str, dict[str, Any]]:
    """Return label -> the settings that it changes.

    Args:
        axis: the axis of a table or of one of its tiers.
        table_axis: the table's axis, of which a list at a tier names some values.
    """
    if isinstance(axis, dict):
        return {label: changed or {} for label, changed in axis.items()}
    of_table = axis_values(name, table_axis) if isinstance(table_axis, dict) else {}
    return {str(label(value)): of_table.get(str(label(value)), {name: value}) for value in axis}


def tier_axes(spec: TableSpec, tier: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return axis -> label -> the settings that it changes, at `tier`."""
    tier_spec = spec.tiers[tier]  # type: ignore[index]
    of_tier = tier_spec.rows | tier_spec.columns
    return {name: axis_values(name, of_tier.get(name, axis), axis) for name, axis in (spec.rows | spec.columns).items()}


def matches(labels: dict[str, str], where: dict[str, str | list[str]]) -> bool:
    """Return whether each axis named in `where` has one of its values in `where`."""
    return all(labels.get(axis) in (value if isinstance(value, list) else [value]) for axis, value in where.items())


def block_of(spec: TableSpec, tier: str, labels: dict[str, str]) -> Block | None:
    """Return the block that a cell is in at a tier, None where the tier does not have the cell.

    Raises:
        DpbenchError: two blocks have the cell; names both.
    """
    tier_blocks = spec.tiers[tier].cells  # type: ignore[index]
    blocks = spec.cells if tier_blocks is None else tier_blocks
    matching = [number for number, block in enumerate(blocks) if matches(labels, {k: v for k, v in block.items() if k != WHY})]
    if len(matching) > 1:
        numbers = " and ".join(str(number + 1) for number in matching[:2])
        raise DpbenchError(
            f"{_where(spec, tier)}: blocks {numbers} of `cells` both have {_spell(labels)}", "let each cell be in one block"
        )
    return blocks[matching[0]] if matching else None


def overrides_of(spec: TableSpec, tier: str) -> list[Override]:
    """Return the overrides that apply at `tier`."""
    tier_overrides = spec.tiers[tier].overrides  # type: ignore[index]
    return spec.overrides if tier_overrides is None else tier_overrides


def cells_at(spec: TableSpec, tier: str) -> Iterator[dict[str, str]]:
    """Yield the labels of the cells that a table has at a tier."""
    axes = tier_axes(spec, tier)
    for values in itertools.product(*(axes[name] for name in spec.axes)):
        labels = dict(zip(spec.axes, values, strict=True))
        block = block_of(spec, tier, labels)
        if block is not None and WHY not in block:
            yield labels


class _Builder:
    """Builds runs, each only once."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve
        self._runs: dict[str, Run] = {}

    def run(self, job: str, settings: dict[str, Any], seed: int, resources: Resources, where: str) -> Run:
        plugin = plugins.get("job", job, where)
        module = plugin.load()
        parsed = parse(module.Settings, settings, where)
        uses: Uses = module.uses(parsed)
        sources = {f"dataset:{n}": self.resolve("dataset", n) for n in uses.datasets}
        sources |= {f"model:{n}": self.resolve("model", n) for n in uses.models}
        versions = {f"job:{job}": identity(plugin)}
        versions |= {f"{kind}:{name}": identity(plugins.get(kind, name, where)) for kind, name in uses.plugins}
        versions |= {key: identity(plugins.get(*key.split(":", 1), where)) for key in sources}  # type: ignore[call-arg]
        parents = self._parents(plugin, module, parsed, seed, where)
        config = {
            "job": job,
            "settings": parsed.model_dump(mode="json"),
            "seed": seed,
            "versions": dict(sorted(versions.items())),
            "sources": {name: source.identity for name, source in sorted(sources.items())},
            "parents": {role: parent.id for role, parent in sorted(parents.items())},
        }
        name = run_id(config)
        if name not in self._runs:
            decisive = {name: config[name] for name in ("job", "settings", "versions")}
            key = run_id(decisive | {"parents": {role: parent.key for role, parent in sorted(parents.items())}})
            self._runs[name] = Run(name, key, config, sources, resources, parents)
        return self._runs[name]

    def _parents(self, plugin: plugins.Plugin, module: ModuleType, parsed: Any, seed: int, where: str) -> dict[str, Run]:
        """Build the parents of a run.

        A job may define `parents(settings, seed) -> {role: (job, settings, seed, resources)}`; its plug-in lists those jobs in
        `parents`.
        """
        requests = module.parents(parsed, seed) if hasattr(module, "parents") else {}
        for role, (job, *_) in requests.items():
            if job not in plugin.extra.get("parents", ()):
                raise DpbenchError(
                    f"{where}: parent {role} is a job {job}", f"name it in the `parents` of {module.__name__}.PLUGIN"
                )
        return {
            role: self.run(job, settings, parent_seed, resources, f"{where}: parent {role}")
            for role, (job, settings, parent_seed, resources) in requests.items()
        }


def config_of(job: str, settings: Mapping[str, Any], seed: int = 0, resolve: Resolve | None = None) -> dict[str, Any]:
    """Return the config of one run outside any table, as a table would name it.

    Args:
        resolve: as in `expand`; None for a job without datasets, models and parents.

    Raises:
        DpbenchError: an unknown job, setting or plug-in.
    """

    def nowhere(kind: str, name: str) -> Source:
        raise DpbenchError(f"job {job} uses the {kind} {name!r}, whose source is not known")

    return _Builder(resolve or nowhere).run(job, dict(settings), seed, Resources(minutes=1), f"job {job}").config


def _with_parents(run: Run) -> Iterator[Run]:
    for parent in run.parents.values():
        yield from _with_parents(parent)
    yield run


def expand(spec: TableSpec, tier: str, resolve: Resolve, seeds: list[int] | None = None) -> Plan:
    """Return all cells of a table at a tier, and the runs that fill them.

    Args:
        resolve: tells where each dataset and model comes from.
        seeds: these replace the table's seeds.

    Raises:
        DpbenchError: an unknown tier, setting, plug-in, dataset or model; names file and key.
    """
    plan = expand_with(spec, tier, resolve, lambda cell_seeds, _: seeds or cell_seeds)
    if not plan.cells:
        raise DpbenchError(f"{_where(spec, tier)}: no cell is left", "look at its axes and at `cells`")
    return plan


def _where(spec: TableSpec, tier: str) -> str:
    path = path_of(spec)
    return f"{path.relative_to(paths.root()) if path.is_relative_to(paths.root()) else path} (tier {tier})"


def expand_with(
    spec: TableSpec, tier: str, resolve: Resolve, choose_seeds: Callable[[list[int], dict[str, Any]], list[int]]
) -> Plan:
    """Expand a table as `expand` does, with the seeds that `choose_seeds` returns for a cell's seeds and settings.

    The plan may have no cell.
    """
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    tier_spec = spec.tiers[tier]  # type: ignore[index]
    axes = tier_axes(spec, tier)
    base = merge(spec.settings, tier_spec.settings)
    resources = tier_spec.resources or spec.resources
    where = _where(spec, tier)
    plan, builder = Plan(spec, tier), _Builder(resolve)
    separate = [name for name in axes if name not in spec.measured_together]
    joint = [name for name in axes if name in spec.measured_together]
    for separate_values in itertools.product(*(axes[name] for name in separate)):
        labels = dict(zip(separate, separate_values, strict=True))
        joint_labels = []
        for values in itertools.product(*(axes[name] for name in joint)):
            cell = labels | dict(zip(joint, values, strict=True))
            block = block_of(spec, tier, cell)
            if block is None:
                continue
            if WHY in block:
                plan.skipped.append(({name: cell[name] for name in spec.axes}, str(block[WHY])))
            else:
                joint_labels.append({name: cell[name] for name in joint})
        if not joint_labels:
            continue
        settings, seeds = base, tier_spec.seeds or spec.seeds
        for name, value in labels.items():
            settings = merge(settings, axes[name][value])
        for override in overrides_of(spec, tier):
            if matches(labels, override.where):
                settings, seeds = merge(settings, override.settings), override.seeds or seeds
        for name in joint:
            settings = merge(
                settings, {spec.measured_together[name]: list(dict.fromkeys(select[name] for select in joint_labels))}
            )
        for seed in choose_seeds(seeds, settings):
            run = builder.run(spec.job, settings, seed, resources, f"{where}: {_spell(labels)}")
            for part in _with_parents(run):
                plan.runs.setdefault(part.id, part)
            for select in joint_labels:
                cell_labels = {name: (labels | select)[name] for name in spec.axes}
                plan.cells.append(Cell(cell_labels, select, seed, run.id))
    return plan


def check_names(config: dict[str, Any], where: str) -> None:
    """Check that the sources and parents of a config from outside are those that its settings ask for.

    Raises:
        DpbenchError: wrong settings, or a source or parent too many or too few; names the key.
    """
    module = plugins.get("job", config["job"], where).load()
    settings = parse(module.Settings, config["settings"], f"{where}: settings")
    uses: Uses = module.uses(settings)
    named = {
        "sources": [*(f"dataset:{n}" for n in uses.datasets), *(f"model:{n}" for n in uses.models)],
        "parents": list(module.parents(settings, config["seed"])) if hasattr(module, "parents") else [],
    }
    for key, names in named.items():
        for name in sorted({*names} ^ {*config[key]}):
            missing = name in names
            raise DpbenchError(
                f"{where}: {key}: {name} is {'missing' if missing else 'not used by the settings'}",
                "give the config.json as dpbench wrote it",
            )


def _spell(labels: dict[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in labels.items())

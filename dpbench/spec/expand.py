"""Table + tier -> cells and the runs that fill them. A run is named by a hash of all that decides its numbers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from dpbench import plugins
from dpbench.errors import DpbenchError, unknown
from dpbench.files import canonical_json
from dpbench.plugins.identity import identity
from dpbench.spec.includes import merge
from dpbench.spec.models import TIERS, WHY, AxisSpec, Block, Override, Resources, TableSpec, label
from dpbench.spec.sources import Source
from dpbench.validation import parse

Resolve = Callable[[str, str], Source]
"""(`dataset` or `model`, name) -> where it comes from."""


@dataclass(frozen=True)
class Uses:
    """What a job's settings name: plug-ins whose versions count, datasets and models whose sources count."""

    plugins: tuple[tuple[str, str], ...] = ()
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One job. id: hash of `config`; parents: role -> run whose artefacts it reads.

    key: hash of all that decides its numbers but the seed, and where data and models come from, its parents' keys among it.
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
    """What a table needs at a tier. `runs` holds the runs of its cells and all their parents, parents first."""

    spec: TableSpec
    tier: str
    cells: list[Cell] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    skipped: list[tuple[dict[str, str], str]] = field(default_factory=list)


def run_id(config: dict[str, Any]) -> str:
    """The name of a run: twelve hex digits of the sha256 of its canonical config."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:12]


def axis_values(name: str, axis: AxisSpec) -> dict[str, dict[str, Any]]:
    """Label -> settings it changes."""
    if isinstance(axis, dict):
        return {label: over or {} for label, over in axis.items()}
    return {str(label(value)): {name: value} for value in axis}


def tier_axes(spec: TableSpec, tier: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Axis -> label -> overrides, as they stand at `tier`."""
    over = spec.tiers[tier]  # type: ignore[index]
    rows = {name: over.rows.get(name, axis) for name, axis in spec.rows.items()}
    columns = {name: over.columns.get(name, axis) for name, axis in spec.columns.items()}
    return {name: axis_values(name, axis) for name, axis in (rows | columns).items()}


def matches(labels: dict[str, str], where: dict[str, str | list[str]]) -> bool:
    """Whether each axis named in `where` has (one of) the value(s) given there."""
    return all(labels.get(axis) in (value if isinstance(value, list) else [value]) for axis, value in where.items())


def block_of(spec: TableSpec, tier: str, labels: dict[str, str]) -> Block | None:
    """Return the block that a cell is in at a tier, None where the tier does not have it.

    Raises:
        DpbenchError: two blocks have it; names both.
    """
    own = spec.tiers[tier].cells  # type: ignore[index]
    blocks = spec.cells if own is None else own
    having = [block for block in blocks if matches(labels, {axis: value for axis, value in block.items() if axis != WHY})]
    if len(having) > 1:
        numbers = " and ".join(str(blocks.index(block) + 1) for block in having[:2])
        raise DpbenchError(
            f"{_where(spec, tier)}: blocks {numbers} of `cells` both have {_spell(labels)}", "let each cell be in one block"
        )
    return having[0] if having else None


def overrides_of(spec: TableSpec, tier: str) -> list[Override]:
    """Return the settings of some cells alone, as they stand at `tier`."""
    own = spec.tiers[tier].overrides  # type: ignore[index]
    return spec.overrides if own is None else own


def cells_at(spec: TableSpec, tier: str) -> Iterator[dict[str, str]]:
    """Yield the labels of the cells that a table has at a tier."""
    axes = tier_axes(spec, tier)
    for values in itertools.product(*(axes[name] for name in spec.axes)):
        labels = dict(zip(spec.axes, values, strict=True))
        block = block_of(spec, tier, labels)
        if block is not None and WHY not in block:
            yield labels


class _Builder:
    """Makes runs, each once."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve
        self.made: dict[str, Run] = {}

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
        if name not in self.made:
            decisive = {name: config[name] for name in ("job", "settings", "versions")}
            key = run_id(decisive | {"parents": {role: parent.key for role, parent in sorted(parents.items())}})
            self.made[name] = Run(name, key, config, sources, resources, parents)
        return self.made[name]

    def _parents(self, plugin: plugins.Plugin, module: ModuleType, parsed: Any, seed: int, where: str) -> dict[str, Run]:
        """A job may define `parents(settings, seed) -> {role: (job, settings, seed, resources)}`, of the jobs that its plug-in
        says are its `parents`."""
        wanted = module.parents(parsed, seed) if hasattr(module, "parents") else {}
        for role, (job, *_) in wanted.items():
            if job not in plugin.extra.get("parents", ()):
                raise DpbenchError(
                    f"{where}: parent {role} is a job {job}", f"name it in the `parents` of {module.__name__}.PLUGIN"
                )
        return {
            role: self.run(job, settings, parent_seed, resources, f"{where}: parent {role}")
            for role, (job, settings, parent_seed, resources) in wanted.items()
        }


def config_of(job: str, settings: Mapping[str, Any], seed: int = 0, resolve: Resolve | None = None) -> dict[str, Any]:
    """The config of one run outside any table, as a table would make it.

    Args:
        resolve: as in `expand`; None for a job without datasets, models and parents.

    Raises:
        DpbenchError: an unknown job, setting or plug-in.
    """

    def nowhere(kind: str, name: str) -> Source:
        raise DpbenchError(f"job {job} names the {kind} {name!r}, and nobody says where it comes from")

    return _Builder(resolve or nowhere).run(job, dict(settings), seed, Resources(minutes=1), f"job {job}").config


def _with_parents(run: Run) -> Iterator[Run]:
    for parent in run.parents.values():
        yield from _with_parents(parent)
    yield run


def expand(spec: TableSpec, tier: str, resolve: Resolve, seeds: list[int] | None = None) -> Plan:
    """All cells of a table at a tier, and the runs that fill them.

    Args:
        resolve: says where each dataset and model comes from.
        seeds: instead of the table's own.

    Raises:
        DpbenchError: an unknown tier, setting, plug-in, dataset or model; names file and key.
    """
    plan = expand_with(spec, tier, resolve, lambda own, _: seeds or own)
    if not plan.cells:
        raise DpbenchError(f"{_where(spec, tier)}: no cell is left", "look at its axes and at `cells`")
    return plan


def _where(spec: TableSpec, tier: str) -> str:
    return f"benchmarks/{spec.paper}/{spec.table}.yaml (tier {tier})"


def expand_with(spec: TableSpec, tier: str, resolve: Resolve, chosen: Callable[[list[int], dict[str, Any]], list[int]]) -> Plan:
    """As `expand`, with the seeds that `chosen` makes of each cell's own and of its settings; there may be no cell."""
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    over = spec.tiers[tier]  # type: ignore[index]
    axes = tier_axes(spec, tier)
    base = merge(spec.settings, over.settings)
    resources = over.resources or spec.resources
    where = _where(spec, tier)
    plan, builder = Plan(spec, tier), _Builder(resolve)
    apart = [name for name in axes if name not in spec.measured_together]
    joint = [name for name in axes if name in spec.measured_together]
    for outer in itertools.product(*(axes[name] for name in apart)):
        labels = dict(zip(apart, outer, strict=True))
        inner = []
        for values in itertools.product(*(axes[name] for name in joint)):
            cell = labels | dict(zip(joint, values, strict=True))
            block = block_of(spec, tier, cell)
            if block is None:
                continue
            if WHY in block:
                plan.skipped.append(({name: cell[name] for name in spec.axes}, str(block[WHY])))
            else:
                inner.append({name: cell[name] for name in joint})
        if not inner:
            continue
        settings, seeds = base, over.seeds or spec.seeds
        for name, value in labels.items():
            settings = merge(settings, axes[name][value])
        for override in overrides_of(spec, tier):
            if matches(labels, override.where):
                settings, seeds = merge(settings, override.settings), override.seeds or seeds
        for name in joint:
            settings = merge(settings, {spec.measured_together[name]: list(dict.fromkeys(i[name] for i in inner))})
        for seed in chosen(seeds, settings):
            run = builder.run(spec.job, settings, seed, resources, f"{where}: {_spell(labels)}")
            for part in _with_parents(run):
                plan.runs.setdefault(part.id, part)
            for select in inner:
                cell_labels = {name: (labels | select)[name] for name in spec.axes}
                plan.cells.append(Cell(cell_labels, select, seed, run.id))
    return plan


def check_names(config: dict[str, Any], where: str) -> None:
    """Hold a config that somebody gives to what its own settings name: their datasets and models, their parents' roles.

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
                f"{where}: {key}: {name} is {'missing' if missing else 'there, and the settings do not name it'}",
                "give the config.json as dpbench wrote it",
            )


def _spell(labels: dict[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in labels.items())

"""Read `config/config.yaml`, which says what to study."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dpbench.errors import DpbenchError, unknown
from dpbench.files import read_json, read_yaml
from dpbench.spec.models import TIERS, TableSpec
from dpbench.spec.run_config import Seed, Tracking
from dpbench.spec.tables import load_named, load_table, papers, tables_of
from dpbench.validation import Strict, parse, short


class Config(Strict):
    """The keys of `config/config.yaml`."""

    tier: str = Field("laptop", description="smoke, laptop, overnight, gpu or paper.")
    papers: Literal["all"] | list[str] = Field("all", description="Which papers; `all` or a list of their keys.")
    tables: Literal["all"] | list[str] = Field("all", description="Which tables; `all` or a list of PAPER/TABLE.")
    seeds: list[Seed] | None = Field(None, description="Seeds of every training run; null keeps those of each table.")
    data_folder: str | None = Field(None, description="Folder of local datasets; DPBENCH_DATA overrides it.")
    model_folder: str | None = Field(None, description="Folder of local models; DPBENCH_MODELS overrides it.")
    plugins: str | list[str] | None = Field(
        None, description="Folders of plug-ins and tables, beside those of DPBENCH_PLUGINS and installed packages."
    )
    sources: dict[str, Literal["auto", "local", "hub", "package", "embedded", "scratch"]] = Field(
        default_factory=dict, description="Dataset or model -> where it must come from; only `auto` falls back."
    )
    tracking: Tracking = Field("off", description="Mirror every run to Weights & Biases.")

    def chosen(self) -> list[TableSpec]:
        """Return the tables to build.

        Raises:
            DpbenchError: an unknown tier, paper or table.
        """
        if self.tier not in TIERS:
            raise unknown("tier", self.tier, TIERS)
        names = papers() if self.papers == "all" else self.papers
        of_papers = [load_table(paper, table) for paper in names for table in tables_of(paper)]
        if self.tables == "all":
            return of_papers
        named = [load_named(name) for name in self.tables]
        chosen = [spec for spec in named if spec in of_papers]
        if not chosen:
            raise DpbenchError("config: `papers` and `tables` have no table in common", "name tables of the chosen papers")
        return chosen


def config_from(values: dict[str, Any], where: str = "config/config.yaml") -> Config:
    """Validate a config that is a mapping (Snakemake's `config`, which includes its command line).

    Raises:
        DpbenchError: unknown keys or values.
    """
    config = parse(Config, values, where)
    if config.tier not in TIERS:
        raise unknown("tier", config.tier, TIERS, where)
    return config


def check_files(*files: str | Path) -> None:
    """Check that config files can be read and are mappings; `config_from` checks their values once they are merged.

    Raises:
        DpbenchError: a file is missing, not YAML (or JSON, for the ending .json), or not a mapping; names file and line.
    """
    for path in map(Path, files):
        values = read_json(path) if path.suffix == ".json" else read_yaml(path)
        if not isinstance(values, dict):
            kind = "empty" if values is None else f"a {type(values).__name__}"
            raise DpbenchError(f"{path}: {kind}, not a mapping of keys", "write at least a line such as `tier: laptop`")
        if stray := next((key for key in values if not isinstance(key, str)), None):
            raise DpbenchError(f"{path}: the key {short(repr(stray))} is not a text", f"known: {', '.join(Config.model_fields)}")

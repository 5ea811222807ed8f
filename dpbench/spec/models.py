"""The models of a table's YAML file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dpbench.spec.run_config import Seed
from dpbench.validation import Strict

TIERS = ("smoke", "laptop", "overnight", "gpu", "paper")
"""From the smallest to the largest. A claim is judged on the last tier that has a record."""

TierName = Literal["smoke", "laptop", "overnight", "gpu", "paper"]


def label(value: Any) -> Any:
    """Return a number as it is printed; anything else is returned unchanged."""
    if isinstance(value, bool | int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value


Label = Annotated[str, BeforeValidator(label)]
"""An axis value as it is printed: `3`, `inf`, `auto_s`."""


class Source(Strict):
    """Where the table was published."""

    arxiv: str = Field("", description="Empty: the table is of no paper.")
    number: str | None = Field(description="Table or figure number as printed; null: the paper has no such table, it is ours.")
    venue: str = ""

    @property
    def phrase(self) -> str:
        """The words to print before the paper's address."""
        if not self.arxiv:
            return "Of no paper"
        return f"{self.number} of" if self.number else "Ours, beside"


class MetricSpec(Strict):
    """One metric of every cell."""

    unit: str
    better: Literal["higher", "lower", "neither"]
    says: str = Field("", description="What is measured, in one line.")
    digits: int = Field(2, ge=0, le=6, description="Decimals to print.")
    main: bool = Field(True, description="Shown in the table itself, not only in its CSV.")


def _by_setting(origin: Any) -> Any:
    """Return setting -> its origin, where a list names the settings of one origin: `ours: [steps, max_length]`."""
    if not isinstance(origin, dict):
        return origin
    by_setting: dict[Any, Any] = {}
    for key, value in origin.items():
        grouped = isinstance(value, list) and all(isinstance(name, str) for name in value)
        for setting, owner in [(name, key) for name in value] if grouped else [(key, value)]:
            if setting in by_setting:
                raise ValueError(f"{setting!r} has two origins")
            by_setting[setting] = owner
    return by_setting


Origin = Annotated[dict[str, str], BeforeValidator(_by_setting, json_schema_input_type=dict[str, str | list[str]])]
"""Setting -> whose it is: the paper's, its code's, ours. In a file a list may name the settings of one origin."""

AxisSpec = list[Any] | dict[Label, dict[str, Any] | None]
"""Values in order. A mapping gives the settings each value changes; a list `[a, b]` sets the setting named after the axis. At a
tier, a list names values of the table's mapping and keeps their settings."""


Block = dict[str, Label | list[Label]]
"""Cells of a table: each axis names one value or several, and one that is not named has all its values. With `why` the published
table has these cells, or another tier has, and they stay empty for that reason."""
WHY = "why"


def _every_cell() -> list[Block]:
    return [{}]


class Override(Strict):
    """Settings of some cells alone, on top of those of the tier and of the axes, and seeds in place of the tier's."""

    where: dict[str, Label | list[Label]]
    settings: dict[str, Any] = Field(default_factory=dict)
    seeds: list[Seed] | None = Field(None, min_length=1)


class Resources(Strict):
    """What one run needs. Not part of a run's identity."""

    threads: int | Literal["all"] = Field(1, description="`all`: nothing else runs beside it (timings).")
    mem_mb: int = 4000
    minutes: float = Field(5, gt=0, description="Expected time on the tier's reference machine; a plan, not a result.")
    gpu: int = 0

    @property
    def small(self) -> bool:
        """Whether a run may come from a process that has imported torch already: not where time or a GPU is what it is about."""
        return self.threads != "all" and not self.gpu


Fold = Literal["sum", "max", "min", "spread"]


class Precondition(Strict):
    """A condition on a setting without which it says nothing: that two models agree means little where neither has learnt."""

    metric: str
    of: dict[str, Label] = Field(description="Axis -> value, of the cell to look at in each setting.")
    above: float = Field(description="The 95 % interval of its mean over seeds must be above this; with one seed, its value.")


class ClaimTest(Strict):
    """A comparison of two selections of cells, paired by every other label and by seed or round."""

    metric: str
    of: dict[str, Label | list[Label]]
    against: dict[str, Label | list[Label]]
    where: dict[str, Label | list[Label]] = Field(default_factory=dict)
    reduce: dict[str, Fold] = Field(
        default_factory=dict,
        description="Axis -> how the cells of each side along it are combined before comparing, seed by seed, in this order; "
        "`spread` is the largest minus the smallest.",
    )
    difference_at_least: float | None = None
    difference_at_most: float | None = None
    ratio_at_least: float | None = None
    ratio_at_most: float | None = None
    quantifier: Literal["mean", "every"] | Annotated[int, Field(ge=1)] = Field(
        "mean",
        description="Whether the threshold must hold for the mean over settings, for every setting, or for this many settings.",
    )
    precondition: Precondition | None = Field(
        None, description="Settings where it does not hold are left out; if it holds in none, nothing is judged."
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> ClaimTest:
        thresholds = [
            n
            for n in ("difference_at_least", "difference_at_most", "ratio_at_least", "ratio_at_most")
            if getattr(self, n) is not None
        ]
        if len(thresholds) != 1:
            raise ValueError("exactly one threshold: difference_at_least, difference_at_most, ratio_at_least or ratio_at_most")
        return self

    @property
    def threshold(self) -> tuple[Literal["difference", "ratio"], Literal["at_least", "at_most"], float]:
        """The threshold as (what is compared, which side is claimed, the number)."""
        for what in ("difference", "ratio"):
            for side in ("at_least", "at_most"):
                value = getattr(self, f"{what}_{side}")
                if value is not None:
                    return what, side, value
        raise AssertionError("validated")


class Claim(Strict):
    """A checkable statement of the paper."""

    id: str
    says: str
    source: str = Field("", description="Where the paper says it.")
    scale: str = Field("", description="How the scale here differs from the paper's.")
    test: ClaimTest


class Plot(Strict):
    """One figure of a table.

    kind `lines`: metric against a numeric axis `x`, a line per value of `series`, a panel per value of `panels`;
    kind `intervals`: a point with its interval per value of `series`, grouped by `x`;
    kind `curves`: a metric over the steps of a run (`facts.curve`), a line per row and seed mean, a panel per value of `x`;
    kind `heatmap`: a cell per value of `x` and of `series`, coloured by the metric, a panel per value of the other axes;
    kind `scatter`: the metric against another one, which `x` names, a marker per value of `series`, with a line through its
    cells where these differ in `x`; the metric `area`, if there is one, sets the area of the markers.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    kind: Literal["lines", "intervals", "curves", "heatmap", "scatter"]
    metric: str
    x: str
    series: str
    panels: list[str] = Field(default_factory=list)
    area: str | None = Field(
        None, exclude_if=lambda v: v is None, description="The metric that sets the area of a scatter's markers."
    )

    @model_validator(mode="after")
    def _only_a_scatter_has_areas(self) -> Plot:
        if self.area is not None and self.kind != "scatter":
            raise ValueError(f"area: a plot of kind {self.kind} has none")
        return self


def _as_list(value: Label | list[Label]) -> list[Label]:
    return value if isinstance(value, list) else [value]


class RelatedSpec(Strict):
    """Values of another paper beside the table."""

    file: str = Field(pattern=r"^[a-z0-9_]+\.csv$", description="In benchmarks/<paper>/related.")
    title: str
    says: str = Field(description="What they are, and how they differ from the values of this table.")


class TierSpec(Strict):
    """Overrides of one tier; an axis of a tier replaces that of the table."""

    settings: dict[str, Any] = Field(default_factory=dict)
    rows: dict[str, AxisSpec] = Field(default_factory=dict)
    columns: dict[str, AxisSpec] = Field(default_factory=dict)
    seeds: list[Seed] | None = None
    cells: list[Block] | None = Field(None, description="These replace the table's.")
    overrides: list[Override] | None = Field(None, description="These replace the table's.")
    resources: Resources | None = None
    origin: Origin = Field(default_factory=dict)
    note: str = Field("", description="Shown under the table for this tier.")


class TableSpec(Strict):
    """One published table or figure with values."""

    paper: str = Field(pattern=r"^[a-z0-9_]+$")
    table: str = Field(pattern=r"^[a-z0-9_]+$", description="Also the name of the results: results/tables/<paper>/<table>.csv.")
    title: str
    source: Source
    job: str
    metrics: dict[str, MetricSpec] = Field(min_length=1)
    rows: dict[str, AxisSpec] = Field(min_length=1)
    columns: dict[str, AxisSpec] = Field(min_length=1)
    measured_together: dict[str, str] = Field(
        default_factory=dict,
        description="Axis -> list setting: all values of that axis are measured in turn inside one run.",
    )
    settings: dict[str, Any] = Field(default_factory=dict)
    origin: Origin = Field(
        default_factory=dict, description="Setting -> its origin: the paper's, its code's, ours; or an origin -> its settings."
    )
    seeds: list[Seed] = Field(default_factory=lambda: [0], min_length=1)
    cells: list[Block] = Field(
        default_factory=_every_cell, min_length=1, description="Blocks of cells; without any, every combination of the axes."
    )
    overrides: list[Override] = Field(
        default_factory=list, description="Settings of some cells alone, which no single axis gives."
    )
    resources: Resources = Resources()
    tiers: dict[TierName, TierSpec]
    claims: list[Claim] = Field(default_factory=list)
    plots: list[Plot] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="Shown under the table.")
    related: list[RelatedSpec] = Field(default_factory=list, description="Values of other papers, shown separately.")

    @model_validator(mode="after")
    def _consistent(self) -> TableSpec:
        missing = [t for t in TIERS if t not in self.tiers]
        if missing:
            raise ValueError(f"tiers: {', '.join(missing)} missing (an empty mapping is enough)")
        if shared := set(self.rows) & set(self.columns):
            raise ValueError(f"axis {sorted(shared)[0]!r} is both a row and a column")
        axes = set(self.rows) | set(self.columns)
        for name, tier in self.tiers.items():
            for kind, tier_axes in (("rows", tier.rows), ("columns", tier.columns)):
                if stray := set(tier_axes) - set(getattr(self, kind)):
                    raise ValueError(f"tiers.{name}.{kind}: {sorted(stray)[0]!r} is not one of the table's {kind}")
        self._check_known("measured_together", self.measured_together, axes)
        self._check_blocks()
        for overrides in (self.overrides, *(t.overrides or [] for t in self.tiers.values())):
            for override in overrides:
                self._check_known("overrides", override.where, axes - set(self.measured_together))
        for claim in self.claims:
            test, conditions = claim.test, [] if claim.test.precondition is None else [claim.test.precondition]
            for part in (test.of, test.against, test.where, test.reduce, *(p.of for p in conditions)):
                self._check_known(f"claims.{claim.id}", part, axes)
            self._check_known(f"claims.{claim.id}.metric", [test.metric, *(p.metric for p in conditions)], set(self.metrics))
        for plot in self.plots:
            self._check_known(f"plots.{plot.name}", [plot.series, *plot.panels], axes)
            self._check_known(f"plots.{plot.name}.x", [plot.x], set(self.metrics) if plot.kind == "scatter" else axes)
            self._check_known(f"plots.{plot.name}.area", [plot.area] if plot.area else [], set(self.metrics))
            self._check_known(f"plots.{plot.name}.metric", [plot.metric], set(self.metrics))
        return self

    def _check_blocks(self) -> None:
        """Check the axes and values of every block: the axis must have the value, at the block's tier or at any tier."""
        at_tier = {name: self.values_at(name) for name in self.tiers}
        at_any = {axis: set().union(*(values[axis] for values in at_tier.values())) for axis in self.axes}
        places: list[tuple[str, list[Block], Mapping[str, Collection[str]]]] = [("cells", self.cells, at_any)]
        places += [(f"tiers.{name}.cells", tier.cells or [], at_tier[name]) for name, tier in self.tiers.items()]
        for where, blocks, known in places:
            for number, block in enumerate(blocks, 1):
                self._check_known(f"{where}, block {number}", set(block) - {WHY}, set(self.axes))
                for axis, value in block.items():
                    if axis != WHY:
                        self._check_known(f"{where}, block {number}: {axis}", _as_list(value), known[axis])

    def values_at(self, tier: TierName) -> dict[str, list[str]]:
        """Return axis -> its values at a tier, as they are printed."""
        tier_spec = self.tiers[tier]
        axes = {**self.rows, **self.columns} | tier_spec.rows | tier_spec.columns
        return {name: [str(label(value)) for value in axes[name]] for name in self.axes}

    @staticmethod
    def _check_known(where: str, names: Any, known: Collection[str]) -> None:
        for name in names:
            if name not in known:
                raise ValueError(f"{where}: {name!r} is not one of {', '.join(sorted(known))}")

    @property
    def axes(self) -> list[str]:
        """Row axes, then column axes."""
        return [*self.rows, *self.columns]
